package index

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/mstage/mstage/storage"
)

// reads are the look-ups, over whatever gives them a transaction: an Index, or
// a View.
type reads struct {
	with func(context.Context, func(*bbolt.Tx) error) error
}

// get decodes the JSON value of key; ok is false when there is none. tx may be
// nil, which is an empty index.
func get[T any](tx *bbolt.Tx, bucket []byte, key string) (v T, ok bool, err error) {
	raw := getRaw(tx, bucket, key)
	if raw == nil {
		return v, false, nil
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, false, fmt.Errorf("record %s of %s: %w: %w", key, bucket, ErrDamaged, err)
	}
	return v, true, nil
}

// getRaw returns a value that is valid within the transaction only.
func getRaw(tx *bbolt.Tx, bucket []byte, key string) []byte {
	if tx == nil {
		return nil
	}
	b := tx.Bucket(bucket)
	if b == nil {
		return nil
	}
	return b.Get([]byte(key))
}

// keysWith returns the keys that begin with prefix, in order.
func keysWith(tx *bbolt.Tx, bucket []byte, prefix string) []string {
	if tx == nil || tx.Bucket(bucket) == nil {
		return nil
	}
	var keys []string
	c := tx.Bucket(bucket).Cursor()
	for k, _ := c.Seek([]byte(prefix)); k != nil && bytes.HasPrefix(k, []byte(prefix)); k, _ = c.Next() {
		keys = append(keys, string(k))
	}
	return keys
}

// Step implements storage.Steps.
func (r reads) Step(ctx context.Context, key storage.Digest) (rec storage.StepRecord, ok bool, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		rec, ok, err = get[storage.StepRecord](tx, bucketSteps, key.Hex())
		return err
	})
	return rec, ok, err
}

// Seal implements storage.Seals.
func (r reads) Seal(ctx context.Context, id storage.LayerID) (s storage.Seal, ok bool, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		s, ok, err = get[storage.Seal](tx, bucketSeals, string(id))
		return err
	})
	return s, ok, err
}

// Image implements storage.Images.
func (r reads) Image(ctx context.Context, id storage.Digest) (img storage.Image, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		img, err = imageByHex(tx, id.Hex())
		return err
	})
	return img, err
}

// imageByHex finds an image by its full local ID or config digest.
func imageByHex(tx *bbolt.Tx, hex string) (storage.Image, error) {
	img, ok, err := get[storage.Image](tx, bucketImages, hex)
	if !ok && err == nil {
		if local := getRaw(tx, bucketSealed, hex); local != nil {
			img, ok, err = get[storage.Image](tx, bucketImages, string(local))
		}
	}
	if !ok && err == nil {
		err = fmt.Errorf("image sha256:%s: %w", hex, storage.ErrNotFound)
	}
	return img, err
}

// ByName implements storage.Images.
func (r reads) ByName(ctx context.Context, name string) (img storage.Image, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		id := getRaw(tx, bucketNames, name)
		if id == nil {
			return fmt.Errorf("image %s: %w", name, storage.ErrNotFound)
		}
		img, err = imageByHex(tx, string(id))
		return err
	})
	return img, err
}

// ByPrefix implements storage.Images.
func (r reads) ByPrefix(ctx context.Context, hex string) (img storage.Image, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		ids := keysWith(tx, bucketImages, hex)
		for _, sealed := range keysWith(tx, bucketSealed, hex) {
			ids = append(ids, string(getRaw(tx, bucketSealed, sealed)))
		}
		slices.Sort(ids)
		switch ids = slices.Compact(ids); len(ids) {
		case 0:
			return fmt.Errorf("image %s: %w", hex, storage.ErrNotFound)
		case 1:
			img, err = imageByHex(tx, ids[0])
			return err
		}
		for i, id := range ids {
			ids[i] = storage.Digest(id).Short()
		}
		return fmt.Errorf("%w: %s is one of %s", storage.ErrAmbiguous, hex, strings.Join(ids, ", "))
	})
	return img, err
}

// AllImages implements storage.Images.
func (r reads) AllImages(ctx context.Context) (all []storage.TaggedImage, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		names := namesByID(tx)
		for _, id := range keysWith(tx, bucketImages, "") {
			img, err := imageByHex(tx, id)
			if err != nil {
				return err
			}
			all = append(all, storage.TaggedImage{Image: img, Names: names[id]})
		}
		return nil
	})
	slices.SortStableFunc(all, func(a, b storage.TaggedImage) int { return b.Created.Compare(a.Created) })
	return all, err
}

// namesByID returns the sorted names of each image.
func namesByID(tx *bbolt.Tx) map[string][]string {
	names := map[string][]string{}
	for _, name := range keysWith(tx, bucketNames, "") {
		id := string(getRaw(tx, bucketNames, name))
		names[id] = append(names[id], name)
	}
	return names
}

// Dropped returns those of ids that the garbage collector has condemned. They
// may still be in the store, but not for long.
func (r reads) Dropped(ctx context.Context, ids ...storage.LayerID) (gone []storage.LayerID, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		gone = droppedOf(tx, ids)
		return nil
	})
	return gone, err
}

func droppedOf(tx *bbolt.Tx, ids []storage.LayerID) []storage.LayerID {
	var gone []storage.LayerID
	for _, id := range ids {
		if getRaw(tx, bucketDropped, string(id)) != nil {
			gone = append(gone, id)
		}
	}
	return gone
}
