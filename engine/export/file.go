package export

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// writeFile makes the file dest with what fill writes. It appears whole, and an
// older file is replaced at once; after an error there is what was there
// before. A device, pipe or socket is written to directly.
func writeFile(dest string, fill func(io.Writer) error) error {
	st, err := os.Stat(dest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case st.IsDir():
		return fmt.Errorf("%s is a directory", dest)
	case !st.Mode().IsRegular():
		return writeThrough(dest, fill)
	default:
		// The file is replaced, not the symbolic link that leads to it.
		if dest, err = filepath.EvalSymlinks(dest); err != nil {
			return err
		}
	}
	return replaceFile(dest, fill)
}

// writeThrough writes to something that is not a regular file.
func writeThrough(dest string, fill func(io.Writer) error) error {
	f, err := os.OpenFile(dest, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(fill(f), f.Close())
}

// replaceFile writes a new file and gives it the name at the end.
func replaceFile(dest string, fill func(io.Writer) error) (err error) {
	temp := tempName(dest)
	f, named, err := createTemp(temp)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, ignoreClosed(f.Close()))
		if err != nil && named {
			err = errors.Join(err, ignoreMissing(os.Remove(temp)))
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if !named {
		// The file has no name so far; only the link in /proc leads to it.
		proc := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
		if err := unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, temp, unix.AT_SYMLINK_FOLLOW); err != nil {
			return &os.LinkError{Op: "link", Old: proc, New: temp, Err: err}
		}
		named = true
	}
	if err := os.Rename(temp, dest); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dest))
}

// createTemp makes the file that becomes the output. Where the file system can,
// it has no name until it is complete, so that a kill leaves nothing behind.
func createTemp(temp string) (f *os.File, named bool, err error) {
	const mode = 0o666 // less the umask, as for every output file
	f, err = os.OpenFile(filepath.Dir(temp), os.O_WRONLY|unix.O_TMPFILE, mode)
	if err == nil {
		return f, false, nil
	}
	f, err = os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	return f, true, err
}

// tempName returns a new name beside dest.
func tempName(dest string) string {
	return filepath.Join(filepath.Dir(dest), tempBase())
}

// tempBase returns a new hidden name.
func tempBase() string { return ".mstage-" + rand.Text() }

// syncDir makes a rename last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ignoreClosed drops the error of a second Close.
func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// ignoreMissing drops the error of removing what is not there.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
