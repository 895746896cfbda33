"""The demo's data: real flights whose truth comes by itself, and digits whose truth comes only from a person.

Tables, planted faults and simulated people are pure and know nothing of Kafka; the demo sends them through the real
client and reads them back from the real topics. Every number on its screen is one of three kinds, and says so: *real*
(flights, weather, arrivals), *injected* (the planted fault) or *simulated* (the reviewer of ``--auto``, the users of
the digits).
"""
