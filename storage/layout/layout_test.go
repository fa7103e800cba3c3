package layout_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/mstage/mstage/storage/layout"
)

func TestAStoreIsMadeOnceAndFoundAgain(t *testing.T) {
	root := filepath.Join(t.TempDir(), "a", "store")
	if _, err := layout.Open(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open before: error %v, want fs.ErrNotExist", err)
	}
	for range 2 {
		if _, err := layout.Create(root); err != nil {
			t.Fatal(err)
		}
	}
	l, err := layout.Open(root)
	if err != nil || l.Root != root {
		t.Errorf("open: %v, error %v; want %s", l.Root, err, root)
	}
	if fi, err := os.Stat(root); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, error %v; want 0700", fi.Mode(), err)
	}
}

func TestDirectoriesThatAreNoStoreAreRefused(t *testing.T) {
	cases := map[string]struct {
		file, content string
		problem       layout.Problem
	}{
		"other content":    {"photo.jpg", "x", layout.ProblemFormat},
		"a newer format":   {"format", "mstage store 99\n", layout.ProblemFormat},
		"a foreign format": {"format", "something\n", layout.ProblemFormat},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, c.file), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := layout.Create(root)
			refusal, ok := errors.AsType[*layout.Error](err)
			if !ok || refusal.Problem != c.problem || refusal.Hint == "" {
				t.Errorf("error %v, want problem %d with a hint", err, c.problem)
			}
		})
	}
}

func TestAnotherUsersStoreIsRefused(t *testing.T) {
	root := "/" // root's, where the tests run as another user
	if os.Geteuid() == 0 {
		root = t.TempDir()
		if err := os.Chown(root, 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	_, err := layout.Create(root)
	refusal, ok := errors.AsType[*layout.Error](err)
	if !ok || refusal.Problem != layout.ProblemOwner {
		t.Errorf("error %v, want a *layout.Error about the owner", err)
	}
}

func TestAHalfMadeStoreIsMadeAgain(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"containers", "tmp", ".format-123"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := layout.Create(root); err != nil {
		t.Error(err)
	}
}

func TestAMarkerTellsThisBootFromAnother(t *testing.T) {
	m := layout.Marker(filepath.Join(t.TempDir(), "m"))
	want := func(want layout.State) {
		t.Helper()
		if got, err := m.State(); got != want || err != nil {
			t.Errorf("state %v, error %v; want %v", got, err, want)
		}
	}
	want(layout.Clean)
	if err := errors.Join(m.Set(), m.Set()); err != nil {
		t.Fatal(err)
	}
	want(layout.Dirty)
	if err := os.WriteFile(string(m), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	want(layout.Lost)
	if err := errors.Join(m.Clear(), m.Clear()); err != nil {
		t.Fatal(err)
	}
	want(layout.Clean)
}

func TestExclusiveLocksExcludeAndSharedOnesDoNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, err := layout.AcquireLock(t.Context(), path, layout.Shared)
	if err != nil {
		t.Fatal(err)
	}
	b, err := layout.AcquireLock(t.Context(), path, layout.Shared)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		l, err := layout.AcquireLock(t.Context(), path, layout.Exclusive)
		if err == nil {
			err = l.Unlock()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("exclusive lock beside shared ones: error %v", err)
	default:
	}
	if err := errors.Join(a.Unlock(), b.Unlock(), <-got); err != nil {
		t.Error(err)
	}
}

func TestAFileOfALivingProcessIsNotAbandoned(t *testing.T) {
	dir := t.TempDir()
	f, err := layout.CreateLocked(dir, "x-")
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := layout.Abandoned(f.Name()); gone || err != nil {
		t.Errorf("abandoned %v, error %v; want false", gone, err)
	}
	if n, err := layout.RemoveAbandoned(dir, "x-"); n != 0 || err != nil {
		t.Errorf("removed %d, error %v; want 0", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := layout.RemoveAbandoned(dir, "x-"); n != 1 || err != nil {
		t.Errorf("removed %d, error %v; want 1", n, err)
	}
}
