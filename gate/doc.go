// Package gate decides whether to load K/V or to compute it. It is arithmetic over measurements: how long an engine takes for a token
// (Prefill), how long the remote tier takes for an answer and for a byte (Path), and how much there is to get (Work). Ask says whether to
// ask the remote tier at all, Decide which way is the fastest, Claim whether to leave a computation to another worker. These are pure
// functions; the meters beside them keep the measurements. Nothing here is configured, and nothing waits.
package gate
