package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/cache"

	"github.com/fairway-net/fairway/agent/source"
)

// A store is where a reflector puts the objects of one kind: it converts them and hands them to the Source's
// Assembler. Being a TransformingStore, it makes the reflector convert also while it gathers a complete list, so
// that at no time all objects of a kind are there in the API's form (but for a server without watch-list).
type store struct {
	*Source
	kind source.Kind
}

var _ cache.TransformingStore = (*store)(nil)

// convert takes also what is converted already, as a TransformFunc must.
func convert(obj any) (any, error) {
	if o, ok := obj.(*source.Object); ok {
		return o, nil
	}
	return source.Convert(obj)
}

// Transformer implements [cache.TransformingStore].
func (s *store) Transformer() cache.TransformFunc { return convert }

// Add implements [cache.ReflectorStore].
func (s *store) Add(obj any) error { return s.Update(obj) }

// Update implements [cache.ReflectorStore].
func (s *store) Update(obj any) error {
	o, err := convert(obj)
	if err != nil {
		return err
	}
	s.change(func(a *source.Assembler) { a.Set(o.(*source.Object)) })
	return nil
}

// Delete implements [cache.ReflectorStore].
func (s *store) Delete(obj any) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return fmt.Errorf("delete a %s: %w", s.kind, err)
	}
	id := source.ID{Kind: s.kind, Namespace: m.GetNamespace(), Name: m.GetName()}
	s.change(func(a *source.Assembler) { a.Delete(id) })
	return nil
}

// Replace implements [cache.ReflectorStore].
func (s *store) Replace(objs []any, _ string) error {
	objects := make([]*source.Object, 0, len(objs))
	for i, obj := range objs {
		o, err := convert(obj)
		if err != nil {
			return err
		}
		objects = append(objects, o.(*source.Object))
		objs[i] = nil // the list is ours; its objects can go one by one
	}
	s.change(func(a *source.Assembler) {
		a.Replace(s.kind, objects)
		s.complete[s.kind], s.listed = true, true
	})
	return nil
}

// Resync implements [cache.ReflectorStore]. There is nothing that could differ from what was stored.
func (s *store) Resync() error { return nil }

// change makes a change under the lock, and wakes the Source.
func (s *store) change(f func(*source.Assembler)) {
	s.mu.Lock()
	f(s.assembler)
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default: // it is to wake up already
	}
}
