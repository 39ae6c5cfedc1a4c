package block

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// HashSize is the length of a chain hash in bytes. It is never cut: a collision would serve another prompt's K/V.
const HashSize = sha256.Size

// Hash identifies a block together with everything before it: tokens, weights, layout and tenant.
type Hash [HashSize]byte

func (h Hash) String() string { return base64.RawURLEncoding.EncodeToString(h[:]) }

// DefaultSecret keys the chain where no cluster secret is configured: single-user mode, in which anybody who can write
// to the store is trusted not to forge collisions.
const DefaultSecret = "kvtier single-user mode"

// ExtraType separates kinds of extras, so that one kind can never collide with another.
type ExtraType uint32

// Kinds of extras.
const (
	ExtraAdapter ExtraType = 1 // an adapter applied from this block on
	ExtraMedia   ExtraType = 2 // digest of an image or sound whose placeholder tokens stand in this block
)

// Extra is something besides tokens that a block's K/V depends on.
type Extra struct {
	Type  ExtraType
	Value []byte
}

// Cut names the last purge of one tenant: random bits that become part of the root hash, so that nothing stored before can be
// reached any more. The zero cut says that the tenant was never purged.
type Cut [16]byte

func (c Cut) String() string { return hex.EncodeToString(c[:]) }

// MarshalText encodes c as 32 hex digits.
func (c Cut) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText decodes 32 hex digits.
func (c *Cut) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(c)) {
		return fmt.Errorf("block: cut has %d characters, want %d hex digits", len(text), hex.EncodedLen(len(c)))
	}
	_, err := hex.Decode(c[:], text)
	return err
}

// IsZero reports whether c is unset.
func (c Cut) IsZero() bool { return c == Cut{} }

// Namespace is the name under which a tenant appears outside the workers: HMAC(K, "ns" ‖ salt). Without a secret of the cluster's own
// anybody can compute it from a salt, so it hides the salt only from who cannot guess it. An empty secret means DefaultSecret.
func Namespace(secret []byte, salt string) Digest {
	return namespace(hmac.New(sha256.New, orDefaultSecret(secret)), salt)
}

func namespace(mac hash.Hash, salt string) (ns Digest) {
	mac.Reset()
	mac.Write([]byte("ns"))
	mac.Write([]byte(salt))
	mac.Sum(ns[:0])
	return ns
}

func orDefaultSecret(secret []byte) []byte {
	if len(secret) == 0 {
		return []byte(DefaultSecret)
	}
	return secret
}

// Chain computes chain hashes for one identity and one tenant:
//
//	ns  = HMAC(K, "ns" ‖ salt)
//	h0  = HMAC(K, "root" ‖ weights ‖ layout ‖ ns [‖ cut])
//	h_i = HMAC(K, h_{i-1} ‖ le32 count ‖ le32 tokens… ‖ (le32 type ‖ le32 length ‖ value)…)
//
// with HMAC-SHA-256 and the cluster secret K. A Chain is not safe for concurrent use, since its methods share one hash
// state: make one per request.
type Chain struct {
	mac         hash.Hash
	id          Identity
	root        Hash
	ns          Digest
	blockTokens int
	buf         []byte // message under construction
	sum         []byte // keeps Next free of allocations
}

// NewChain starts a chain for id, for the tenant named by salt ("" is a tenant of its own), over blocks of blockTokens tokens.
// An empty secret means DefaultSecret. It panics if blockTokens is below 1, which no layout is that [Layout.Validate] accepts.
func NewChain(secret []byte, id Identity, salt string, blockTokens int) *Chain {
	if blockTokens < 1 {
		panic("block: NewChain with blockTokens < 1")
	}
	c := &Chain{mac: hmac.New(sha256.New, orDefaultSecret(secret)), id: id, blockTokens: blockTokens,
		buf: make([]byte, 0, HashSize+4+4*blockTokens), sum: make([]byte, 0, HashSize)}
	c.ns = namespace(c.mac, salt)
	c.setRoot(nil)
	return c
}

// After restarts the chain behind a purge of the tenant: hashes computed from here on have nothing in common with those before it, or
// behind another one. The zero cut is the chain that NewChain has made. Call it before the first Next.
func (c *Chain) After(cut Cut) {
	if cut.IsZero() {
		c.setRoot(nil)
		return
	}
	c.setRoot(cut[:])
}

// setRoot binds weights, layout, tenant and purge. All but the last are of fixed length, so that no two inputs read the same.
func (c *Chain) setRoot(cut []byte) {
	c.mac.Reset()
	c.mac.Write([]byte("root"))
	c.mac.Write(c.id.Weights[:])
	c.mac.Write(c.id.Layout[:])
	if !tenantless() {
		c.mac.Write(c.ns[:])
	}
	c.mac.Write(cut)
	c.mac.Sum(c.root[:0])
}

// Root is the hash that stands before the first block.
func (c *Chain) Root() Hash { return c.root }

// Namespace is the tenant's namespace: it travels in every value's header.
func (c *Chain) Namespace() Digest { return c.ns }

// Next returns the hash of the block that holds tokens and follows parent.
func (c *Chain) Next(parent Hash, tokens []int32, extras ...Extra) Hash {
	b := append(c.buf[:0], parent[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(tokens)))
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint32(b, uint32(t))
	}
	for _, x := range extras {
		b = binary.LittleEndian.AppendUint32(b, uint32(x.Type))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(x.Value)))
		b = append(b, x.Value...)
	}
	c.buf = b
	c.mac.Reset()
	c.mac.Write(b)
	c.sum = c.mac.Sum(c.sum[:0])
	return Hash(c.sum)
}

// AppendHashes appends to dst the hashes of all full blocks of tokens, from the root on; a partial last block has none.
func (c *Chain) AppendHashes(dst []Hash, tokens []int32) []Hash {
	h := c.root
	for len(tokens) >= c.blockTokens {
		h = c.Next(h, tokens[:c.blockTokens])
		dst = append(dst, h)
		tokens = tokens[c.blockTokens:]
	}
	return dst
}

// Reusable is the number of leading full blocks of an n-token prompt that may come from the cache: the last token is
// always computed, because its logits choose the first output token.
// blockTokens must be positive.
func Reusable(n, blockTokens int) int { return max(0, n-1) / blockTokens }
