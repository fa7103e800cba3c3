package buildcontext

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A stat index file is a header and records of one size, sorted by device and
// inode, so that it is searched as it was read and nothing is decoded:
//
//	magic    8  "mstgstat"
//	version  4  little endian, as all numbers
//	checksum 4  CRC-32C over everything after it
//	root    32  SHA-256 of the context's absolute path
//	records     indexRecordBytes each
const (
	indexMagic       = "mstgstat"
	indexVersion     = 1
	indexHeaderBytes = 8 + 4 + 4 + sha256.Size
	indexSumOffset   = 12
	// indexRecordBytes: see statKey.append and indexRecord.append.
	indexRecordBytes = 5*8 + 3*4 + 2 + 2 + sha256.Size
	// maxIndexRecords bounds one file to 44 MB.
	maxIndexRecords = 512 << 10
	// maxIndexIdle is how many rewrites a record survives without being asked for.
	maxIndexIdle = 8
	// maxIndexFiles is how many contexts are remembered; the oldest go first.
	maxIndexFiles = 64
	indexSuffix   = ".stat"
)

// racyWindow is how old a file's times must be when it is hashed for its record
// to be kept: within one tick of the file system's clock a later change would
// not show. Two seconds is the coarsest tick that Linux mounts (FAT). Source:
// git's Documentation/technical/racy-git.
const racyWindow = 2 * time.Second

// indexPlain is set in a record's flags when the file has no extended
// attributes that belong to its content.
const indexPlain = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// statKey is what must be unchanged for a file's bytes to be the same.
type statKey struct {
	dev, ino       uint64
	size           int64
	mtime, ctime   int64 // ns since 1970
	mode, uid, gid uint32
}

// append encodes k.
func (k statKey) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, k.dev)
	b = binary.LittleEndian.AppendUint64(b, k.ino)
	b = binary.LittleEndian.AppendUint64(b, uint64(k.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(k.mtime))
	b = binary.LittleEndian.AppendUint64(b, uint64(k.ctime))
	b = binary.LittleEndian.AppendUint32(b, k.mode)
	b = binary.LittleEndian.AppendUint32(b, k.uid)
	return binary.LittleEndian.AppendUint32(b, k.gid)
}

// statKeyBytes is the length of an encoded statKey.
const statKeyBytes = 5*8 + 3*4

// racy reports whether a change right after now could go unseen.
func (k statKey) racy(now time.Time) bool {
	return max(k.mtime, k.ctime) > now.Add(-racyWindow).UnixNano()
}

// indexRecord is what is known about a file.
type indexRecord struct {
	digest [sha256.Size]byte
	flags  uint16
	idle   uint16 // rewrites of the index since it was last asked for
}

// statIndex finds digests by stat result. Safe for concurrent use.
type statIndex struct {
	file string
	root [sha256.Size]byte
	old  []byte // the records of the file, never changed
	now  func() time.Time

	mu   sync.Mutex
	used map[int]struct{} // positions in old that were asked for
	new  map[statKey]indexRecord
}

// loadStatIndex reads the index of a context root. One that is missing, damaged
// or of another version is empty: it costs time, not truth.
func loadStatIndex(dir, root string) *statIndex {
	sum := sha256.Sum256([]byte(root))
	x := &statIndex{
		file: filepath.Join(dir, hex.EncodeToString(sum[:16])+indexSuffix),
		root: sum,
		now:  time.Now,
		used: map[int]struct{}{},
		new:  map[statKey]indexRecord{},
	}
	data, err := readSmall(func() (*os.File, error) { return os.Open(x.file) }, indexHeaderBytes+maxIndexRecords*indexRecordBytes)
	if err == nil && x.intact(data) {
		x.old = data[indexHeaderBytes:]
	}
	return x
}

// intact reports whether data is a whole index of this version and root.
func (x *statIndex) intact(data []byte) bool {
	if len(data) < indexHeaderBytes || (len(data)-indexHeaderBytes)%indexRecordBytes != 0 {
		return false
	}
	return bytes.Equal(data[:indexHeaderBytes], x.header(data[indexSumOffset+4:]))
}

// header returns the header for what follows the checksum (root and records).
func (x *statIndex) header(summed []byte) []byte {
	b := []byte(indexMagic)
	b = binary.LittleEndian.AppendUint32(b, indexVersion)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(summed, castagnoli))
	return append(b, x.root[:]...)
}

// find returns what is known about a file.
func (x *statIndex) find(k statKey) (indexRecord, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if r, ok := x.new[k]; ok {
		return r, true
	}
	want := k.append(make([]byte, 0, statKeyBytes))
	i := x.search(k)
	if i >= len(x.old)/indexRecordBytes || !bytes.Equal(x.at(i)[:statKeyBytes], want) {
		return indexRecord{}, false
	}
	x.used[i] = struct{}{}
	return decodeRecord(x.at(i)), true
}

// at returns the record at a position.
func (x *statIndex) at(i int) []byte { return x.old[i*indexRecordBytes:][:indexRecordBytes] }

// search returns the first position whose device and inode are not below k's.
func (x *statIndex) search(k statKey) int {
	return sort.Search(len(x.old)/indexRecordBytes, func(i int) bool {
		r := x.at(i)
		dev, ino := binary.LittleEndian.Uint64(r), binary.LittleEndian.Uint64(r[8:])
		return cmp.Or(cmp.Compare(dev, k.dev), cmp.Compare(ino, k.ino)) >= 0
	})
}

// decodeRecord reads what follows the key.
func decodeRecord(b []byte) indexRecord {
	b = b[statKeyBytes:]
	r := indexRecord{flags: binary.LittleEndian.Uint16(b), idle: binary.LittleEndian.Uint16(b[2:])}
	copy(r.digest[:], b[4:])
	return r
}

// append encodes r after its key.
func (r indexRecord) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, r.flags)
	b = binary.LittleEndian.AppendUint16(b, r.idle)
	return append(b, r.digest[:]...)
}

// put keeps a record unless the file is too young for it.
func (x *statIndex) put(k statKey, r indexRecord, hashedAt time.Time) {
	if k.racy(hashedAt) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.new[k] = r
}

// save replaces the file when there is something new.
func (x *statIndex) save() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.new) == 0 {
		return nil
	}
	body := append(x.root[:len(x.root):len(x.root)], x.merged()...)
	data := append(x.header(body), body[len(x.root):]...)
	if err := os.MkdirAll(filepath.Dir(x.file), 0o700); err != nil {
		return fmt.Errorf("stat index: %w", err)
	}
	if err := replaceFile(x.file, data); err != nil {
		return fmt.Errorf("stat index %s: %w", x.file, err)
	}
	clear(x.new)
	return dropOldest(filepath.Dir(x.file))
}

// merged returns old and new records, sorted: one for each inode, without those
// that nobody asked for in a long time.
func (x *statIndex) merged() []byte {
	type inode struct{ dev, ino uint64 }
	fresh := make(map[inode]struct{}, len(x.new))
	records := make([][]byte, 0, len(x.new)+len(x.old)/indexRecordBytes)
	for k, r := range x.new {
		fresh[inode{k.dev, k.ino}] = struct{}{}
		records = append(records, r.append(k.append(make([]byte, 0, indexRecordBytes))))
	}
	for i := range len(x.old) / indexRecordBytes {
		b := x.at(i)
		if _, ok := fresh[inode{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}]; ok {
			continue
		}
		r := decodeRecord(b)
		r.idle++
		if _, ok := x.used[i]; ok {
			r.idle = 0
		}
		if r.idle <= maxIndexIdle {
			records = append(records, r.append(slices.Clone(b[:statKeyBytes])))
		}
	}
	records = records[:min(len(records), maxIndexRecords)]
	slices.SortFunc(records, compareInodes)
	return bytes.Join(records, nil)
}

// compareInodes orders encoded records by device and inode.
func compareInodes(a, b []byte) int {
	return cmp.Or(
		cmp.Compare(binary.LittleEndian.Uint64(a), binary.LittleEndian.Uint64(b)),
		cmp.Compare(binary.LittleEndian.Uint64(a[8:]), binary.LittleEndian.Uint64(b[8:])),
	)
}

// newSuffix ends the name of an index in the making.
const newSuffix = ".new"

// replaceFile writes a file that appears whole or not at all. It is not synced:
// the checksum finds what a crash left behind. While another process writes the
// same one nothing is done: it saves the same, and an index only saves work. A
// fixed name and a lock let the next writer take over what a kill left.
func replaceFile(name string, data []byte) (err error) {
	f, err := os.OpenFile(name+newSuffix, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil
		}
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	if ours, err := stillNamed(f); err != nil || !ours {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), name)
}

// stillNamed reports whether an open file has the name that it was opened by.
func stillNamed(f *os.File) (bool, error) {
	opened, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(opened, named), err
}

// dropOldest removes the indexes of contexts that were not built for long.
func dropOldest(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("stat index: %w", err)
	}
	type aged struct {
		name string
		time time.Time
	}
	var files []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), indexSuffix) {
			files = append(files, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b aged) int { return b.time.Compare(a.time) })
	var errs []error
	for _, f := range files[min(len(files), maxIndexFiles):] {
		if err := os.Remove(filepath.Join(dir, f.name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
