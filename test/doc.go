// Package test holds what is tested of fairway as a whole: scenarios (a cluster and what an agent makes of it),
// properties that hold between any two of them, and the rules of the house.
//
// Its subdirectories hold the tests that need a kernel or a control plane. Nothing here is imported by the agent.
package test
