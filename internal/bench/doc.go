// Package bench measures the parts of kvtier on the machine it runs on: what is behind kvtier bench and benchmarks/.
//
// A figure from a machine that other work shares says little, and a figure from another minute says nothing about this one. What is
// compared is therefore measured in one process in rounds that take turns, each round in another order, and reported as the
// median of the rounds with the lowest and the highest; ratios are taken within a round. A figure carries its unit in its name: GB is
// 1e9 bytes of K/V, an operation is one stored value.
package bench
