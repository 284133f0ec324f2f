package kube

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"

	"github.com/fairway-net/fairway/agent/source"
)

// contact knows whether the API answers, from the results of the requests that the reflectors make anyway. It logs the
// changes.
type contact struct {
	mu      sync.Mutex
	failing map[source.Kind]error // guarded by mu, like the following
	since   time.Time
	// answers is closed, and replaced, when the API answers for a list for which it did not, while it does not yet for others.
	answers chan struct{}
}

// lost returns since when requests have been failing, and the error of one of them; the zero time when all is well.
func (c *contact) lost() (time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kind := range source.Kinds {
		if err := c.failing[kind]; err != nil {
			return c.since, err
		}
	}
	return time.Time{}, nil
}

// result takes note of how a request ended. It returns err.
func (c *contact) result(kind source.Kind, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.failing)
	if isAnswer(err) {
		if delete(c.failing, kind); len(c.failing) > 0 && len(c.failing) < before {
			close(c.answers)
			c.answers = make(chan struct{})
		}
	} else {
		c.failing[kind] = err
	}
	switch after := len(c.failing); {
	case before == 0 && after > 0:
		c.since = time.Now()
		klog.ErrorS(err, "Kubernetes API lost; the last known state stays in force", "resource", kind)
	case before > 0 && after == 0:
		klog.InfoS("Kubernetes API is back", "after", time.Since(c.since).Round(time.Millisecond))
	}
	return err
}

// answered returns what is closed when the API answers again, for one list at least.
func (c *contact) answered() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers
}

// isAnswer reports whether the API did its work. Being told to list anew (410), to slow down (429) or that watch-list
// is not known (422) is part of the protocol.
func isAnswer(err error) bool {
	if err == nil {
		return true
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code != http.StatusUnauthorized && code != http.StatusForbidden && code >= 400 && code < 500
}
