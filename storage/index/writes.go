package index

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mstage/mstage/storage"
)

// Limits of what is kept, so that no caller can grow the index without end.
const (
	// maxImageBytes is the limit of one image record. Registries refuse
	// manifests over 4 MiB; a config with its sealed twin stays under twice that.
	maxImageBytes = 16 << 20
	// maxNameBytes is the longest name of an image: a reference has at most 255
	// bytes of repository and 128 of tag, and a host name 255.
	maxNameBytes = 1024
	// maxLayers is what one overlay mount can stack. Source: the kernel's
	// OVL_MAX_STACK.
	maxLayers = 500
)

// put keeps v as JSON.
func (c *change) put(bucket []byte, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.putRaw(bucket, key, raw)
}

func (c *change) putRaw(bucket []byte, key string, value []byte) error {
	b, err := c.tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), value)
}

func (c *change) delete(bucket []byte, key string) error {
	b := c.tx.Bucket(bucket)
	if b == nil {
		return nil
	}
	return b.Delete([]byte(key))
}

// checkLayers refuses layers that the garbage collector has condemned.
func (c *change) checkLayers(layers ...storage.Layer) error {
	for _, l := range layers {
		if l.ID != "" && getRaw(c.tx, bucketDropped, string(l.ID)) != nil {
			return fmt.Errorf("layer %s was collected: %w", l.ID, storage.ErrNotFound)
		}
	}
	return nil
}

// RecordSteps implements storage.Steps, in one transaction. The error wraps
// storage.ErrNotFound when the layer was collected meanwhile.
func (ix *Index) RecordSteps(ctx context.Context, rec storage.StepRecord, keys ...storage.Digest) error {
	err := ix.update(ctx, func(c *change) error {
		if err := c.checkLayers(rec.Layer); err != nil {
			return err
		}
		for _, key := range keys {
			if err := c.recordStep(rec, key); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record step: %w", err)
	}
	return nil
}

func (c *change) recordStep(rec storage.StepRecord, key storage.Digest) error {
	if !storage.IsHex64(key.Hex()) {
		return fmt.Errorf("%q is not a digest", key)
	}
	if err := c.forgetStep(key.Hex()); err != nil {
		return err
	}
	err := errors.Join(
		c.put(bucketSteps, key.Hex(), rec),
		c.putRaw(bucketUsed, key.Hex(), encodeTime(time.Now())))
	if rec.Layer.ID != "" {
		err = errors.Join(err, c.putRaw(bucketLayers, string(rec.Layer.ID)+"/"+key.Hex(), nil))
	}
	return err
}

// ForgetSteps implements storage.Steps, in one transaction.
func (ix *Index) ForgetSteps(ctx context.Context, keys ...storage.Digest) error {
	if len(keys) == 0 {
		return nil
	}
	return ix.update(ctx, func(c *change) error {
		for _, key := range keys {
			if err := c.forgetStep(key.Hex()); err != nil {
				return err
			}
		}
		return nil
	})
}

// forgetStep removes a step's record with what points to it.
func (c *change) forgetStep(hex string) error {
	old, ok, err := get[storage.StepRecord](c.tx, bucketSteps, hex)
	if err != nil || !ok {
		return err
	}
	return errors.Join(
		c.delete(bucketLayers, string(old.Layer.ID)+"/"+hex),
		c.delete(bucketUsed, hex),
		c.delete(bucketSteps, hex))
}

// PutSeal implements storage.Seals.
func (ix *Index) PutSeal(ctx context.Context, id storage.LayerID, s storage.Seal) error {
	err := ix.update(ctx, func(c *change) error {
		if err := c.checkLayers(storage.Layer{ID: id}); err != nil {
			return err
		}
		return c.put(bucketSeals, string(id), s)
	})
	if err != nil {
		return fmt.Errorf("record seal of layer %s: %w", id, err)
	}
	return nil
}

// PutImage implements storage.Images. A seal that is known already stays. The
// error wraps storage.ErrNotFound when a layer was collected meanwhile.
func (ix *Index) PutImage(ctx context.Context, img storage.Image, names ...string) error {
	err := checkImage(img, names)
	if err == nil {
		err = ix.update(ctx, func(c *change) error { return c.putImage(img, names) })
	}
	if err != nil {
		return fmt.Errorf("record image %s: %w", img.ID.Short(), err)
	}
	return nil
}

func checkImage(img storage.Image, names []string) error {
	size := len(img.Config)
	if img.Sealed != nil {
		size += len(img.Sealed.Config)
		if m := img.Sealed.Manifest; m != nil {
			size += len(m.Raw)
		}
	}
	switch {
	case !storage.IsHex64(img.ID.Hex()):
		return fmt.Errorf("%q is not a digest", img.ID)
	case img.Sealed != nil && !storage.IsHex64(img.Sealed.ConfigDigest.Hex()):
		return fmt.Errorf("config digest %q is not a digest", img.Sealed.ConfigDigest)
	case size > maxImageBytes:
		return fmt.Errorf("config of %d bytes is over the limit of %d", size, maxImageBytes)
	case len(img.Layers) > maxLayers:
		return fmt.Errorf("%d layers are over the limit of %d", len(img.Layers), maxLayers)
	}
	for _, n := range names {
		if n == "" || len(n) > maxNameBytes || strings.ContainsRune(n, 0) {
			return fmt.Errorf("name %.80q is empty or longer than %d bytes", n, maxNameBytes)
		}
	}
	return nil
}

func (c *change) putImage(img storage.Image, names []string) error {
	if err := c.checkLayers(img.Layers...); err != nil {
		return err
	}
	hex := img.ID.Hex()
	old, _, err := get[storage.Image](c.tx, bucketImages, hex)
	if err != nil {
		return err
	}
	if img.Sealed == nil {
		img.Sealed = old.Sealed
	}
	if old.Sealed != nil && img.Sealed.ConfigDigest != old.Sealed.ConfigDigest {
		if err := c.delete(bucketSealed, old.Sealed.ConfigDigest.Hex()); err != nil {
			return err
		}
	}
	if img.Sealed != nil {
		if err := c.putRaw(bucketSealed, img.Sealed.ConfigDigest.Hex(), []byte(hex)); err != nil {
			return err
		}
	}
	c.images[hex] = true
	if err := c.put(bucketImages, hex, img); err != nil {
		return err
	}
	for _, name := range names {
		if before := getRaw(c.tx, bucketNames, name); before != nil {
			c.images[string(before)] = true
		}
		if err := c.putRaw(bucketNames, name, []byte(hex)); err != nil {
			return err
		}
	}
	return nil
}

// Untag implements storage.Images.
func (ix *Index) Untag(ctx context.Context, name string) error {
	return ix.update(ctx, func(c *change) error {
		id := getRaw(c.tx, bucketNames, name)
		if id == nil {
			return fmt.Errorf("image %s: %w", name, storage.ErrNotFound)
		}
		c.images[string(id)] = true
		return c.delete(bucketNames, name)
	})
}

// RemoveImage implements storage.Images. id is a local ID or a config digest;
// the error wraps storage.ErrNotFound.
func (ix *Index) RemoveImage(ctx context.Context, id storage.Digest) error {
	return ix.update(ctx, func(c *change) error {
		img, err := imageByHex(c.tx, id.Hex())
		if err != nil {
			return err
		}
		return c.removeImage(img)
	})
}

func (c *change) removeImage(img storage.Image) error {
	hex := img.ID.Hex()
	c.images[hex] = true
	for _, name := range namesByID(c.tx)[hex] {
		if err := c.delete(bucketNames, name); err != nil {
			return err
		}
	}
	if img.Sealed != nil {
		if err := c.delete(bucketSealed, img.Sealed.ConfigDigest.Hex()); err != nil {
			return err
		}
	}
	return c.delete(bucketImages, hex)
}

// touchGrain is how exact the time of the last use is. A rebuild within it
// writes nothing, which keeps a cached build free of writes.
const touchGrain = 10 * time.Minute

// Touch notes that the steps with these keys were used now, in one write
// transaction at most. Keys without a record are ignored.
func (ix *Index) Touch(ctx context.Context, keys ...storage.Digest) error {
	now := time.Now()
	var stale []string
	err := ix.view(ctx, func(tx *bbolt.Tx) error {
		for _, key := range keys {
			used := getRaw(tx, bucketUsed, key.Hex())
			if used != nil && now.Sub(decodeTime(used)) > touchGrain {
				stale = append(stale, key.Hex())
			}
		}
		return nil
	})
	if err != nil || len(stale) == 0 {
		return err
	}
	return ix.update(ctx, func(c *change) error {
		for _, hex := range stale {
			if getRaw(c.tx, bucketUsed, hex) == nil {
				continue
			}
			if err := c.putRaw(bucketUsed, hex, encodeTime(now)); err != nil {
				return err
			}
		}
		return nil
	})
}

// encodeTime keeps nanoseconds, so that steps of one build stay in order.
func encodeTime(t time.Time) []byte { return []byte(t.UTC().Format(time.RFC3339Nano)) }

// decodeTime returns the zero time, which is long ago, for what is not one.
func decodeTime(b []byte) time.Time {
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return time.Time{}
	}
	return t
}
