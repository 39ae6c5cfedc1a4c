// Package codec turns a part of a block into a self-describing value and back, without copying the payload.
//
// A frame is the value exactly as it is stored: header, metadata, payload, in one buffer. Whoever produces K/V writes it at
// its final place in the frame (Payload), Seal fills in the rest; whoever fetched a frame has it checked where it lies (Open) and
// reads the payload from it. A writer on a slow link may store a smaller frame that says the same (Encode); a reader turns it
// back in place (OpenAny). Wire format, version 2, little-endian:
//
//	  0   4  magic 8B 'K' 'V' 'T'
//	  4   1  major version; readers refuse others
//	  5   1  minor version; readers ignore it
//	  6   2  must-understand flags; readers refuse any they do not know
//	  8   4  payload offset = header + metadata, padded with zeros to a multiple of 64
//	 12   4  metadata length, at most MaxMetaBytes
//	 16   8  payload length as stored
//	 24   8  payload length when decoded: what the layout says the part has
//	 32  32  weights digest
//	 64  32  layout digest
//	 96  32  namespace (tenant)
//	128  32  chain hash
//	160   8  epoch
//	168   2  part
//	170   2  parts of the block
//	172   4  tokens in the block
//	176   1  payload encoding: 0 raw, 1 planes (lossless, planes.go), 2 int8 (lossy, int8.go; a property of the layout)
//	177   7  first bytes of the act, the random name of the activation that gave out the epoch; zero without one
//	184   8  xxh3-64 of the payload as stored
//	192   4  offset of the payload in the block's
//	196   4  CRC-32C of everything before the payload but these 4 bytes
//	200      metadata: msgpack map that describes the layout for people and tools, then padding
//
// Version 1 had other parts (docs/decisions/020-size-classes.md) under another layout digest, so that its values have other names; zero at 192,
// and at 24 the length without quantisation.
//
// Invariants: equal inputs give equal bytes, on any machine; Open never trusts a length that the reader's own layout does not
// imply, never allocates, and returns a payload only if every identity field is the expected one and both checksums
// hold. Checksums catch accidents; what keeps entries of other weights or tenants out is the comparison of identities.
package codec
