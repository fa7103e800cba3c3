// Package overlay turns a directory into a store: layers in containers/storage,
// overlay mounts of them, leases and garbage collection.
//
// It implements storage.Layers and storage.Mounter and is the only user of
// containers/storage, which serves as a catalogue: layers have no parents there
// and its archive code never runs. Their order is the index's business.
//
// The process is uid 0 in a user and mount namespace of its own, or real root.
// Any number of processes may have one store open.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	cstorage "go.podman.io/storage"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/blobs"
	"github.com/mstage/mstage/storage/index"
	"github.com/mstage/mstage/storage/layout"
)

// MountAPI says which system calls make an overlay mount.
type MountAPI int

// The mount APIs.
const (
	// MountAuto takes fsconfig(2) where the kernel has "lowerdir+" and mount(2)
	// elsewhere.
	MountAuto MountAPI = iota
	// MountFsconfig: one fsconfig(2) for each lower layer.
	MountFsconfig
	// MountClassic: mount(2) with all layers in one page of options.
	MountClassic
)

// Options says which store to open.
type Options struct {
	// Root is the store's directory; it is made when it is missing.
	Root string
	// RunRoot is a directory of this process, best on a tmpfs: state that may
	// be lost with it. It is made when it is missing.
	RunRoot string
	// MountAPI is for tests; the zero value is right for every kernel.
	MountAPI MountAPI
	// Warn is told about what was lost or mended, one line each. May be nil.
	Warn func(text string)
}

// Store is an open store. Safe for concurrent use. Close it.
type Store struct {
	layout  layout.Layout
	runRoot string
	catalog cstorage.Store
	index   *index.Index
	blobs   *blobs.Store
	warn    func(string)
	own     *lease // what this process has committed
	mounts  mounts
}

var (
	_ storage.Layers  = (*Store)(nil)
	_ storage.Mounter = (*Store)(nil)
)

// Open opens the store, makes it where it is missing, and mends what an
// unclean end of the machine left. A directory that can't be used gives a
// *layout.Error. The first opening after a boot makes a test mount.
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := prepare(o)
	if err != nil {
		return nil, err
	}
	remember, err := s.checkFilesystem()
	if err != nil {
		return nil, err
	}
	lost, err := s.beforeCatalog(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.openCatalog(ctx, remember); err != nil {
		return nil, fmt.Errorf("open store %s: %w", s.layout.Root, err)
	}
	if err := s.mend(ctx, lost); err != nil {
		return nil, err
	}
	if s.own, err = s.newLease(); err != nil {
		return nil, err
	}
	return s, nil
}

// prepare makes the parts that need no mount and no catalogue.
func prepare(o Options) (*Store, error) {
	l, err := layout.Create(o.Root)
	if err != nil {
		return nil, err
	}
	if o.RunRoot == "" {
		return nil, errors.New("open store: no run directory given")
	}
	runRoot, err := filepath.Abs(o.RunRoot)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(runRoot, 0o700); err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	s := &Store{layout: l, runRoot: runRoot, warn: o.Warn}
	s.mounts = mounts{empty: l.Empty(), links: runRoot, api: o.MountAPI}
	if s.warn == nil {
		s.warn = func(string) {}
	}
	if s.index, err = index.Open(l.Index()); err != nil {
		return nil, err
	}
	s.blobs, err = blobs.Open(l.Blobs())
	return s, err
}

// openCatalog opens containers/storage. When remember is not nil, its driver
// makes its test mounts, and the outcome is remembered. A lock tells their
// directories from those that a killed process left.
func (s *Store) openCatalog(ctx context.Context, remember func() error) (err error) {
	if remember == nil {
		s.catalog, err = openCatalog(s.layout.Graph(), s.runRoot)
		return err
	}
	lock, err := s.lock(ctx, lockSync, layout.Exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if s.catalog, err = openCatalog(s.layout.Graph(), s.runRoot); err != nil {
		return err
	}
	driver, err := s.catalog.GraphDriver()
	if err != nil {
		return err
	}
	// The one test that the driver would leave to the first commit: it starts a
	// process. The answer changes nothing for layers without an id map.
	driver.SupportsShifting(nil, nil)
	return remember()
}

// storageConf is the variable that names containers/storage's configuration.
const storageConf = "CONTAINERS_STORAGE_CONF"

// configOnce guards the environment and containers/storage's cache of its
// defaults, both of which belong to the process.
var configOnce sync.Mutex

// openCatalog opens containers/storage without reading any storage.conf. Its
// test mounts are recorded in runRoot; ours were made before.
func openCatalog(graphRoot, runRoot string) (cstorage.Store, error) {
	configOnce.Lock()
	defer configOnce.Unlock()
	restore := setenv(storageConf, os.DevNull)
	defer restore()
	restoreOverride := setenv(storageConf+"_OVERRIDE", "")
	defer restoreOverride()
	return cstorage.GetStore(cstorage.StoreOptions{
		GraphRoot:       graphRoot,
		RunRoot:         runRoot,
		GraphDriverName: "overlay",
		// skip_mount_home: every mount is ours, so the graph root needs no bind
		// mount of itself.
		GraphDriverOptions: []string{"overlay.skip_mount_home=true", "overlay.sync=none"},
	})
}

// setenv sets a variable, or unsets it for "", and returns what undoes that.
func setenv(name, value string) (restore func()) {
	old, had := os.LookupEnv(name) //nolint:forbidigo // containers/storage takes settings from the environment only
	if value == "" {
		os.Unsetenv(name)
	} else {
		os.Setenv(name, value)
	}
	return func() {
		if had {
			os.Setenv(name, old)
		} else {
			os.Unsetenv(name)
		}
	}
}

// Index is the store's index.
func (s *Store) Index() *index.Index { return s.index }

// Blobs are the store's layer blobs.
func (s *Store) Blobs() *blobs.Store { return s.blobs }

// Layout is where the store's parts are.
func (s *Store) Layout() layout.Layout { return s.layout }

// TempDir is a directory of this process on the store's file system. Close
// removes it, and the next collection does when the process is killed.
func (s *Store) TempDir() string { return s.own.tmp }

// Close ends the leases that Commit took and removes TempDir. Staged layers
// must be committed or discarded before.
func (s *Store) Close() error { return s.own.Release() }

// lock takes one of the store's locks.
func (s *Store) lock(ctx context.Context, name string, mode int) (*layout.Lock, error) {
	return layout.AcquireLock(ctx, filepath.Join(s.layout.Locks(), name), mode)
}

// The store's locks. A process takes them in this order and holds each for
// milliseconds.
const (
	// lockCollect: shared while a lease is extended, exclusive while layers are
	// condemned.
	lockCollect = "collect"
	// lockStage: shared while a staging directory gets its owner and while it is
	// removed, exclusive while abandoned ones are moved away.
	lockStage = "stage"
	// lockSync: shared while a layer is committed, exclusive while the list of
	// synced layers changes.
	lockSync = "sync"
)
