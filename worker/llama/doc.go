// Package llama runs models of the Llama architecture from GGUF files and Hugging Face checkpoints, in pure Go. It implements the contract of package
// engine: RMSNorm, rotary embedding, grouped-query attention, SwiGLU, tied or separate output matrix; tensors F32, F16, BF16, Q8_0, Q4_0,
// Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K, widened to float32 when loaded. Invariants kept here:
//
//   - batch invariance to the bit: K, V and logits of a token do not depend on how a prefill was split, what was imported, how
//     many threads compute or what other sequences do. Every output element is accumulated in an order that its own
//     position alone decides, and K and V are rounded to binary16 before anything uses them;
//   - no file makes Open panic or allocate more than a small multiple of the file's size;
//   - goroutines live no longer than the call that starts them;
//   - models whose K/V differ in any bit have different identities: weights and hyper-parameters are in Identity.Weights, the
//     arithmetic of the processor is in Layout.Numerics.
package llama
