package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// beside is what the contenders did with a cluster of one size.
type beside struct {
	services int
	by       map[contender]*tally
	loads    []*load
}

// measureBeside runs the contenders in turns, several times, with one API server.
func (r *results) measureBeside(ctx context.Context, o options) (err error) {
	w, err := newWorld(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, n := range o.sizes {
		if err := w.grow(n, o.endpoints); err != nil {
			return err
		}
		b, err := w.rounds(n, o)
		r.beside = append(r.beside, b)
		if err != nil {
			return err
		}
	}
	return nil
}

// rounds runs all rounds with the cluster as it is, and opens connections through the rules of the last one.
func (w *world) rounds(services int, o options) (b beside, err error) {
	b = beside{services: services, by: map[contender]*tally{}}
	for _, c := range o.contenders {
		b.by[c] = &tally{}
	}
	stages := map[contender]*stage{} // of the last round of each
	defer func() {
		for _, s := range stages {
			err = errors.Join(err, s.close())
		}
	}()
	n := o.rounds
	if !o.does(partContenders) {
		n = 1 // for the rules only
	}
	for i := range n {
		first := i % len(o.contenders)
		for _, c := range slices.Concat(o.contenders[first:], o.contenders[:first]) {
			if b.by[c].unfinished {
				continue
			}
			progress("%s with %d Services, round %d of %d", c.name, services, i+1, n)
			if err := restage(stages, c); err != nil {
				return b, err
			}
			if err := w.try(c, stages[c], o, b.by[c]); err != nil {
				return b, fmt.Errorf("%s with %d services: %w", c.name, services, err)
			}
		}
	}
	if o.does(partConnections) {
		b.loads, err = w.measureLoads(b, stages, o)
	}
	return b, err
}

// restage gives a contender a new stage in place of its last one.
func restage(stages map[contender]*stage, c contender) (err error) {
	if old := stages[c]; old != nil {
		delete(stages, c)
		if err := old.close(); err != nil {
			return err
		}
	}
	s, err := newStage(c.mode != "")
	if err == nil {
		stages[c] = s
	}
	return err
}
