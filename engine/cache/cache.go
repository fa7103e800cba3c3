// Package cache finds and records step results by cache key.
package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"

	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
)

// Cache looks steps up in an index. Safe for concurrent use when Steps is.
type Cache struct {
	// Steps keeps the results.
	Steps storage.Steps
	// Disabled makes every look-up a miss; results are recorded all the same
	// (--no-cache).
	Disabled bool

	mu   sync.Mutex
	hits []storage.Digest // guarded by mu
}

// Hits returns the keys that were found so far, for marking them as used.
func (c *Cache) Hits() []storage.Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.hits)
}

// Find returns what the step with this key left behind; ok is false on a miss.
func (c *Cache) Find(ctx context.Context, key storage.Digest) (storage.StepRecord, bool, error) {
	if c.Disabled {
		return storage.StepRecord{}, false, nil
	}
	rec, ok, err := c.Steps.Step(ctx, key)
	if ok {
		c.mu.Lock()
		c.hits = append(c.hits, key)
		c.mu.Unlock()
	}
	return rec, ok, err
}

// ResultIdentity is the identity of what a command produced. That is its key,
// unless the command runs although its result is known: then it may produce
// something else, and nothing that was built on the old result may be found.
func (c *Cache) ResultIdentity(key storage.Digest) storage.Digest {
	if !c.Disabled {
		return key
	}
	return digest("fresh", []string{string(key), rand.Text()})
}

// Record keeps a result under its keys. A COPY --from is also kept by its
// shape, so that a later one can be compared by content.
func (c *Cache) Record(ctx context.Context, rec storage.StepRecord, keys ...storage.Digest) error {
	return c.Steps.RecordSteps(ctx, rec, keys...)
}

// DigestFunc returns the digest of the files that a COPY selects from a chain.
// ok is false when a layer of the chain is gone.
type DigestFunc func(ctx context.Context, layers []storage.LayerID) (d storage.Digest, ok bool, err error)

// FindByContent looks a COPY --from up whose fast key missed. Files are read
// only when an earlier result has the same destination and flags; then the
// selection is digested on both sides and both are remembered, so that a stage
// that ran again and produced the same bytes is still a hit.
//
// content is "" when nothing was read.
func (c *Cache) FindByContent(ctx context.Context, cp *plan.Copy, chain storage.Digest, from []storage.LayerID, digest DigestFunc) (rec storage.StepRecord, content storage.Digest, ok bool, err error) {
	shape, ok, err := c.Find(ctx, ShapeKey(cp, chain))
	if err != nil || !ok {
		return storage.StepRecord{}, "", false, err
	}
	content, ok, err = digest(ctx, from)
	if err != nil || !ok {
		return storage.StepRecord{}, "", false, err
	}
	key := ContentKey(cp, chain, content)
	if rec, ok, err := c.Find(ctx, key); err != nil || ok {
		return rec, content, ok, err
	}
	earlier, ok, err := digest(ctx, shape.From)
	if err != nil || !ok {
		return storage.StepRecord{}, content, false, err
	}
	err = c.Record(ctx, shape, ContentKey(cp, chain, earlier))
	if errors.Is(err, storage.ErrNotFound) {
		return storage.StepRecord{}, content, false, nil // the result was collected meanwhile
	}
	return shape, content, err == nil && earlier == content, err
}
