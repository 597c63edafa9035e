// Package record reads, checks, stamps, converts and builds Kafka's record
// batches. It holds bytes, never state.
//
// A RecordBatch, message format (magic) 2, integers big-endian:
//
//	 0         8        12         16    17    21         23               27
//	┌──────────┬────────┬──────────┬─────┬─────┬──────────┬────────────────┬──
//	│ base     │ batch  │ leader   │magic│ CRC │attributes│ last offset    │
//	│ offset 8 │length 4│ epoch 4  │  1  │  4  │    2     │ delta 4        │
//	└──────────┴────────┴──────────┴─────┴─────┴──────────┴────────────────┴──
//	27          35         43         51         53         57        61
//	┌───────────┬──────────┬──────────┬──────────┬──────────┬─────────┬────────
//	│ base      │ max      │ producer │ producer │ base     │ records │ records
//	│timestamp 8│timestamp8│ id 8     │ epoch 2  │sequence 4│ count 4 │ …
//	└───────────┴──────────┴──────────┴──────────┴──────────┴─────────┴────────
//
// Batch length counts from byte 12. The CRC-32C covers byte 21 to the end, so
// Stamp, which gives a batch its place in the log, touches nothing the CRC
// covers. Attributes: bits 0-2 codec, 3 timestamp type, 4 transactional,
// 5 control. The records are compressed as one:
//
//	length, attributes 1, timestamp delta, offset delta, key length, key,
//	value length, value, header count, {key length, key, value length, value}…
//
// with zigzag varints for all numbers but the attributes byte, -1 for null.
//
// Formats 0 and 1 are message sets; a compressed message ("wrapper") holds
// another set as its value:
//
//	offset 8, size 4, CRC-32 4, magic 1, attributes 1, [timestamp 8, magic 1],
//	key length 4, key, value length 4, value
//
// Old clients send and want them: UpConvert and DownConvert translate. Nothing
// but format 2 is ever stored.
//
// # Who owns what
//
// Every function works on the caller's bytes and keeps none of them. A Batch is
// a view of them. Decompressors and buffers come from pools and go back before
// the call returns; what a callback of ForEach gets is valid only inside it.
//
// # Hostile input
//
// Everything here may meet bytes of a stranger. Lengths are checked against
// what is there before they are used; memory grows with what a decompressor
// really gives, up to a bound; no number read from a batch sizes an allocation.
//
// # Non-goals
//
// Giving offsets, checking producer sequences, timestamps against a clock:
// partition does. Recompressing: a producer's choice is kept.
package record
