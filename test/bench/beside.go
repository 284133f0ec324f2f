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
		if err != nil {
			return err
		}
		r.beside = append(r.beside, b)
	}
	return nil
}

// rounds runs all rounds with the cluster as it is, and loads the rules of the last one with connections.
func (w *world) rounds(services int, o options) (b beside, err error) {
	b = beside{services: services, by: map[contender]*tally{}}
	for _, c := range o.contenders {
		b.by[c] = &tally{}
	}
	stages := map[contender]*stage{} // of the present round
	defer func() {
		for _, s := range stages {
			err = errors.Join(err, s.close())
		}
	}()
	rounds := o.rounds
	if !o.does(partContenders) {
		rounds = 1 // for the rules only
	}
	for i := range rounds {
		// Who comes first changes.
		at := i % len(o.contenders)
		for _, c := range slices.Concat(o.contenders[at:], o.contenders[:at]) {
			t := b.by[c]
			if t.unfinished {
				continue
			}
			progress("%s with %d Services, round %d of %d", c.name, services, i+1, rounds)
			if old := stages[c]; old != nil {
				delete(stages, c)
				if err := old.close(); err != nil {
					return b, err
				}
			}
			s, err := newStage(c.mode != "")
			if err != nil {
				return b, err
			}
			stages[c] = s
			if err := w.try(c, s, o, t); errors.Is(err, errUnfinished) {
				t.unfinished = true
				delete(stages, c)
				err = s.close()
			} else if err != nil {
				return b, fmt.Errorf("%s with %d services: %w", c.name, services, err)
			}
		}
	}
	if o.does(partConnections) {
		return b, w.measureLoads(&b, stages, o)
	}
	return b, nil
}
