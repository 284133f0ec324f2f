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
func measureBeside(ctx context.Context, o options) (list []beside, err error) {
	w, err := newWorld(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for _, n := range o.sizes {
		if err := w.grow(n, o.endpoints); err != nil {
			return nil, err
		}
		b, err := w.round(n, o)
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	return list, nil
}

// round runs all rounds with the cluster as it is, and loads the rules of the last one with connections.
func (w *world) round(services int, o options) (b beside, err error) {
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
	for i := range o.rounds {
		// Who comes first changes.
		at := i % len(o.contenders)
		for _, c := range slices.Concat(o.contenders[at:], o.contenders[:at]) {
			t := b.by[c]
			if t.unfinished {
				continue
			}
			progress("%s with %d Services, round %d of %d", c.name, services, i+1, o.rounds)
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
	return b, nil
}
