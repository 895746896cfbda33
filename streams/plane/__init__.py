"""The data plane: inputs, predictions and feedback in micro-batches, from Kafka to segment summaries.

One thread owns the consumer, the producer and all state here. It never touches SQL; what it finds leaves as events.

=============  ====================================================================================================
``fetch``      the brokers' record batches, unopened, in a thread of its own
``batches``    what a batch's header says, its checksum, aborted transactions, decompression
``source``     offsets and broker timestamps, buffers up to the common frontier
``decode``     many records at once into columns; bad records found by bisection
``store``      the join store: sorted runs of narrow rows by 128-bit id hash
``sides``      the rows of the ids that a batch touches, side by side
``join``       what each record of a batch adds, as a pure function of the records before it
``count``      from joined rows to integer counters of parts
``segments``   open and complete segments, their summaries, what may be committed
``archive``    the decoded events as Parquet
``pressure``   pauses and saves before memory gets tight
``loop``       the thread: consume, work, emit, flush, commit, checkpoint
=============  ====================================================================================================
"""
