// Package hostile is a BGP peer for tests that says whatever it is told to, byte by byte, and a corpus of malformed messages made
// from what was reported of BGP implementations in public from 2023 to 2026: gobgp, FRR, BIRD, OpenBGPD and several vendors' routers.
//
// It knows only as much of BGP as it takes to bring a session up and to keep it. It shares nothing with what it is used against.
package hostile
