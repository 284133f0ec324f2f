//go:build !amd64

package main

import "errors"

func run(string, []string) error {
	return errors.New("it knows the registers of amd64 alone")
}
