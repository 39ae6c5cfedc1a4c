// Package validate has no code, only the test that builds the kustomizations beside it and decodes what comes out, strictly, into the types of
// Kubernetes: a field that is misspelt, in the wrong place or of the wrong type fails. It is a module of its own, so that Kubernetes' packages are
// no dependencies of kvtier.
package validate
