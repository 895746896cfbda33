"""Pure statistics and small state machines: no Kafka, no clock, no SQL, no Faust; integers decide."""
