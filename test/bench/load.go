package main

// A load is a
type load struct{}
