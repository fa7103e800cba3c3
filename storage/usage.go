package storage

import "time"

// Usage is what a store takes on its disk. Every inode is counted once and goes
// to the first that has it, in the order of the fields; within Layers those of
// images come first. All sizes are of disk blocks in bytes, directories included.
type Usage struct {
	Layers []LayerUsage `json:"layers"`
	Blobs  []BlobUsage  `json:"blobs"`
	Caches []CacheUsage `json:"caches"`
	// OtherBytes is the rest: the index, locks, what is in the making.
	OtherBytes int64 `json:"otherBytes"`
}

// LayerUsage is one layer.
type LayerUsage struct {
	ID        LayerID `json:"id"`
	DiskBytes int64   `json:"diskBytes"`
	// Image says that an image has the layer, Cached that a step of the build
	// cache has it.
	Image  bool `json:"image,omitempty"`
	Cached bool `json:"cached,omitempty"`
	// Held says that a process that is running uses it.
	Held    bool      `json:"held,omitempty"`
	Created time.Time `json:"created"`
	// LastUse is zero for what is not in the cache.
	LastUse time.Time `json:"lastUse"`
}

// BlobUsage is one blob.
type BlobUsage struct {
	Digest    Digest `json:"digest"`
	DiskBytes int64  `json:"diskBytes"`
	// Held says that a layer has the blob that a running process uses.
	Held bool `json:"held,omitempty"`
}

// CacheUsage is one directory of RUN --mount=type=cache.
type CacheUsage struct {
	Name      string `json:"name"`
	DiskBytes int64  `json:"diskBytes"`
	Held      bool   `json:"held,omitempty"`
}
