package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/layout"
)

// verdict is the marker of a file system that passed the test.
type verdict struct {
	// Key is what the outcome depends on.
	Key string `json:"key"`
	// Features are the files in which the overlay driver keeps the outcome of
	// its own test mounts, by name.
	Features map[string]string `json:"features"`
}

// checkFilesystem refuses a store on a file system that can't hold overlay
// layers. It finds out with one test mount and remembers the answer until the
// kernel, the user or the device is another: then remember is not nil and to
// be called when the driver has made its tests too. On a known file system
// the driver is spared them, which are most of the time that Open takes.
func (s *Store) checkFilesystem() (remember func() error, err error) {
	key, err := s.filesystemKey()
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", s.layout.Root, err)
	}
	var old verdict
	if raw, err := os.ReadFile(s.layout.OverlayOK()); err == nil && json.Unmarshal(raw, &old) == nil && old.Key == key {
		return nil, s.writeFeatures(old.Features)
	}
	if err := s.testMount(); err != nil {
		return nil, &layout.Error{
			Root: s.layout.Root, Problem: layout.ProblemFilesystem,
			Hint: "put the store on a local ext4, xfs, btrfs or tmpfs (--root or MSTAGE_ROOT)",
			Err:  fmt.Errorf("its file system (%s) can't hold overlay layers: %w", filesystemName(s.layout.Root), err),
		}
	}
	return func() error { return s.rememberVerdict(key) }, nil
}

// featureDir is where the driver keeps the outcome of its tests.
func (s *Store) featureDir() string { return filepath.Join(s.runRoot, "overlay") }

func (s *Store) writeFeatures(features map[string]string) error {
	if err := os.MkdirAll(s.featureDir(), 0o700); err != nil {
		return err
	}
	for name, text := range features {
		if !isFeature(name) {
			continue
		}
		if err := os.WriteFile(filepath.Join(s.featureDir(), name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func isFeature(name string) bool {
	return filepath.Base(name) == name && (strings.HasSuffix(name, "-true") || strings.HasSuffix(name, "-false"))
}

func (s *Store) rememberVerdict(key string) error {
	v := verdict{Key: key, Features: map[string]string{}}
	entries, err := os.ReadDir(s.featureDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isFeature(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(s.featureDir(), e.Name()))
		if err != nil {
			return err
		}
		v.Features[e.Name()] = string(text)
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return layout.ReplaceFile(s.layout.OverlayOK(), raw)
}

// filesystemKey is what the outcome of a test mount depends on.
func (s *Store) filesystemKey() (string, error) {
	boot, err := layout.BootID()
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(s.layout.Graph(), &st); err != nil {
		return "", err
	}
	idMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("boot %s device %d ids %s", boot, st.Dev, strings.Join(strings.Fields(string(idMap)), " ")), nil
}

// probePrefix begins the names of testMount's directories.
const probePrefix = "probe-"

// testMount mounts a layer, deletes a file and replaces a directory in it, and
// looks for the traces that overlay must leave in the upper directory.
func (s *Store) testMount() (err error) {
	dir, err := os.MkdirTemp(s.layout.Tmp(), probePrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeAll(dir)) }()
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	for _, d := range []string{at("lower", "dir"), at("upper"), at("work"), at("merged")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(at("lower", "file"), nil, 0o600); err != nil {
		return err
	}
	m := overlayMount{lowers: []string{at("lower")}, upper: at("upper"), work: at("work"), target: at("merged")}
	if err := s.mounts.mount(m); err != nil {
		return err
	}
	err = errors.Join(os.Remove(at("merged", "file")), os.Remove(at("merged", "dir")), os.Mkdir(at("merged", "dir"), 0o700))
	if err = errors.Join(err, unmountDir(m.target)); err != nil {
		return err
	}
	return checkTraces(at("upper", "file"), at("upper", "dir"))
}

// checkTraces looks for a whiteout and for an opaque directory.
func checkTraces(whiteout, opaque string) error {
	var st unix.Stat_t
	if err := unix.Lstat(whiteout, &st); err != nil {
		return fmt.Errorf("whiteout: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return fmt.Errorf("whiteout has mode %o and device %d, want a character device 0", st.Mode, st.Rdev)
	}
	value := make([]byte, 8)
	n, err := unix.Lgetxattr(opaque, "user.overlay.opaque", value)
	if err != nil {
		return fmt.Errorf("user.overlay.opaque of a replaced directory: %w", err)
	}
	if got := string(value[:n]); got != "y" {
		return fmt.Errorf("user.overlay.opaque is %q, want y", got)
	}
	return nil
}

// filesystemName is for messages. Source: statfs(2) and linux/magic.h.
func filesystemName(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err.Error()
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs",
		unix.MSDOS_SUPER_MAGIC: "vfat", unix.FUSE_SUPER_MAGIC: "fuse", unix.V9FS_MAGIC: "9p",
		unix.CIFS_SUPER_MAGIC: "cifs", unix.ECRYPTFS_SUPER_MAGIC: "ecryptfs", unix.F2FS_SUPER_MAGIC: "f2fs",
		unix.EXFAT_SUPER_MAGIC: "exfat",
	}
	if name, ok := names[int64(st.Type)]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", st.Type)
}
