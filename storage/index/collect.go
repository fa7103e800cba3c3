package index

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"

	"github.com/mstage/mstage/storage"
)

// LayerUse is what the index knows about one layer.
type LayerUse struct {
	ID storage.LayerID
	// Keys are the steps that the layer is a result of.
	Keys []storage.Digest
	// LastUse is the latest of the steps; zero when there is none.
	LastUse time.Time
	// SizeBytes and Created are the layer's, as recorded.
	SizeBytes int64
	Created   time.Time
	// Image is set when an image of the store has the layer.
	Image bool
	// Blobs are the layer's compressed blobs: the one of its seal, and those of
	// images that came with another.
	Blobs []storage.Digest
}

// Uses returns what is known about every layer that a step, an image or a seal
// refers to, sorted by ID.
func (r reads) Uses(ctx context.Context) (uses []LayerUse, err error) {
	err = r.with(ctx, func(tx *bbolt.Tx) error {
		uses, err = layerUses(tx)
		return err
	})
	return uses, err
}

func layerUses(tx *bbolt.Tx) ([]LayerUse, error) {
	uses := map[storage.LayerID]*LayerUse{}
	at := func(id storage.LayerID) *LayerUse {
		if uses[id] == nil {
			uses[id] = &LayerUse{ID: id}
		}
		return uses[id]
	}
	if err := stepUses(tx, at); err != nil {
		return nil, err
	}
	for _, id := range keysWith(tx, bucketImages, "") {
		img, err := imageByHex(tx, id)
		if err != nil {
			return nil, err
		}
		for i, l := range img.Layers {
			u := at(l.ID)
			u.Image, u.SizeBytes, u.Created = true, l.SizeBytes, l.Created
			if s := img.Sealed; s != nil && s.Manifest != nil && i < len(s.Manifest.Blobs) {
				u.Blobs = append(u.Blobs, s.Manifest.Blobs[i].Digest)
			}
		}
	}
	for _, id := range keysWith(tx, bucketSeals, "") {
		seal, _, err := get[storage.Seal](tx, bucketSeals, id)
		if err != nil {
			return nil, err
		}
		if u := at(storage.LayerID(id)); seal.Blob != "" {
			u.Blobs = append(u.Blobs, seal.Blob)
		}
	}
	var list []LayerUse
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		if id != "" {
			list = append(list, *uses[id])
		}
	}
	return list, nil
}

// stepUses adds what the step records tell.
func stepUses(tx *bbolt.Tx, at func(storage.LayerID) *LayerUse) error {
	for _, key := range keysWith(tx, bucketSteps, "") {
		rec, _, err := get[storage.StepRecord](tx, bucketSteps, key)
		if err != nil {
			return err
		}
		u := at(rec.Layer.ID)
		u.SizeBytes, u.Created = rec.Layer.SizeBytes, rec.Layer.Created
		u.Keys = append(u.Keys, storage.Digest("sha256:"+key))
		if used := decodeTime(getRaw(tx, bucketUsed, key)); used.After(u.LastUse) {
			u.LastUse = used
		}
	}
	return nil
}

// droppedFor is how long a condemned layer stays refused. Nothing that read
// the index before the layer was condemned is still at work by then.
const droppedFor = 7 * 24 * time.Hour

// maxStepRecords bounds the records of steps, those without a layer too: the
// least recently used go first. 500 layers have a few thousand keys at most.
const maxStepRecords = 20_000

// Collect condemns layers. In one write transaction choose gets every layer
// that the index knows and returns those to drop; their steps and seals are
// forgotten and images and steps that name them are refused from then on. The
// caller deletes the layers afterwards: when it is killed in between they are
// unknown to the index, and the next collection finds them. An image's layer
// that choose returns stays, and is left out of dropped.
func (ix *Index) Collect(ctx context.Context, choose func([]LayerUse) []storage.LayerID) (dropped []storage.LayerID, err error) {
	err = ix.update(ctx, func(c *change) error {
		uses, err := layerUses(c.tx)
		if err != nil {
			return err
		}
		inImage := map[storage.LayerID]bool{}
		for _, u := range uses {
			inImage[u.ID] = u.Image
		}
		dropped = slices.DeleteFunc(choose(uses), func(id storage.LayerID) bool { return inImage[id] })
		return errors.Join(c.dropLayers(dropped), c.trimSteps(), c.trimDropped())
	})
	if err != nil {
		return nil, err
	}
	return dropped, nil
}

// DropLayers forgets the steps and seals of layers that are gone, and the
// images that need one. It returns the images it forgot.
func (ix *Index) DropLayers(ctx context.Context, ids ...storage.LayerID) (images []storage.TaggedImage, err error) {
	if len(ids) == 0 {
		return nil, nil
	}
	err = ix.update(ctx, func(c *change) error {
		names := namesByID(c.tx)
		for _, hex := range keysWith(c.tx, bucketImages, "") {
			img, err := imageByHex(c.tx, hex)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(img.Layers, func(l storage.Layer) bool { return slices.Contains(ids, l.ID) }) {
				continue
			}
			images = append(images, storage.TaggedImage{Image: img, Names: names[hex]})
			if err := c.removeImage(img); err != nil {
				return err
			}
		}
		return c.dropLayers(ids)
	})
	return images, err
}

func (c *change) dropLayers(ids []storage.LayerID) error {
	now := encodeTime(time.Now())
	for _, id := range ids {
		for _, entry := range keysWith(c.tx, bucketLayers, string(id)+"/") {
			_, key, _ := strings.Cut(entry, "/")
			if err := c.forgetStep(key); err != nil {
				return err
			}
		}
		err := errors.Join(c.delete(bucketSeals, string(id)), c.putRaw(bucketDropped, string(id), now))
		if err != nil {
			return err
		}
	}
	return nil
}

// trimSteps keeps the number of step records within its limit.
func (c *change) trimSteps() error {
	keys := keysWith(c.tx, bucketSteps, "")
	if len(keys) <= maxStepRecords {
		return nil
	}
	used := make(map[string]time.Time, len(keys))
	for _, k := range keys {
		used[k] = decodeTime(getRaw(c.tx, bucketUsed, k))
	}
	slices.SortFunc(keys, func(a, b string) int { return used[a].Compare(used[b]) })
	for _, k := range keys[:len(keys)-maxStepRecords] {
		if err := c.forgetStep(k); err != nil {
			return err
		}
	}
	return nil
}

// trimDropped forgets that layers were condemned long ago.
func (c *change) trimDropped() error {
	for _, id := range keysWith(c.tx, bucketDropped, "") {
		if time.Since(decodeTime(getRaw(c.tx, bucketDropped, id))) < droppedFor {
			continue
		}
		if err := c.delete(bucketDropped, id); err != nil {
			return err
		}
	}
	return nil
}
