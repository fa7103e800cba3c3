package cachedir_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/mstage/mstage/storage/cachedir"
)

// envHold makes the test binary hold a cache instead of running tests.
const envHold = "MSTAGE_TEST_HOLD_CACHE"

func TestMain(m *testing.M) {
	if place := os.Getenv(envHold); place != "" {
		hold(place)
	}
	os.Exit(m.Run())
}

// hold takes the cache of PATH:SHARING, tells its directory and keeps it until
// standard input ends.
func hold(place string) {
	path, sharing, _ := strings.Cut(place, ":")
	dir, release, err := cachedir.Dirs{Path: path}.Acquire(context.Background(), "id", sharing, empty)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, dir)
	_, _ = io.Copy(io.Discard, os.Stdin)
	if err := release(); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

func empty(string) error { return nil }

// otherProcess holds the cache in a process of its own.
func otherProcess(t *testing.T, dirs cachedir.Dirs, sharing string) (dir string, end func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envHold+"="+dirs.Path+":"+sharing)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	dir, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	end = sync.OnceFunc(func() {
		must(t, in.Close())
		must(t, cmd.Wait())
	})
	t.Cleanup(end)
	return strings.TrimSpace(dir), end
}

// acquire takes the cache in this process.
func acquire(t *testing.T, d cachedir.Dirs, sharing string) (dir string, release func()) {
	t.Helper()
	dir, free, err := d.Acquire(t.Context(), "id", sharing, empty)
	must(t, err)
	return dir, func() { must(t, free()) }
}

func TestASharedCacheIsOneDirectoryForAll(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	theirs, end := otherProcess(t, d, "shared")
	for _, sharing := range []string{"shared", ""} {
		ours, release := acquire(t, d, sharing)
		if ours != theirs {
			t.Errorf("sharing %q: got %s, want the other process's %s", sharing, ours, theirs)
		}
		release()
	}
	end()
}

func TestAPrivateCacheIsAnotherDirectoryWhileItIsTaken(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	theirs, end := otherProcess(t, d, "private")
	second, releaseSecond := acquire(t, d, "private")
	third, releaseThird := acquire(t, d, "private")
	if theirs == second || second == third || theirs == third {
		t.Errorf("got %s, %s and %s, want three directories", theirs, second, third)
	}
	end()
	if again, release := acquire(t, d, "private"); again != theirs {
		t.Errorf("after the first was given back: got %s, want %s", again, theirs)
	} else {
		release()
	}
	releaseSecond()
	releaseThird()
}

func TestALockedCacheIsWaitedFor(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	theirs, end := otherProcess(t, d, "locked")
	got := make(chan string)
	go func() {
		dir, release, err := d.Acquire(t.Context(), "id", "locked", empty)
		if err != nil {
			dir = err.Error()
		} else {
			err = release()
		}
		if err != nil {
			dir += err.Error()
		}
		got <- dir
	}()
	select {
	case dir := <-got:
		t.Fatalf("got %s while another process has the cache, want to wait", dir)
	default:
	}
	end()
	if dir := <-got; dir != theirs {
		t.Errorf("got %s, want %s", dir, theirs)
	}
}

func TestWaitingForALockedCacheEndsWithTheContext(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	_, release := acquire(t, d, "shared")
	defer release()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, _, err := d.Acquire(ctx, "id", "locked", empty); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
}

func TestEachIDHasItsOwnDirectoryWhateverItsName(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	seen := map[string]string{}
	for _, id := range []string{"a", "b", "", "../../etc", "a/b", strings.Repeat("long", 1000), "x\x00y"} {
		dir, release, err := d.Acquire(t.Context(), id, "locked", empty)
		must(t, err)
		defer release()
		if filepath.Dir(dir) != d.Path {
			t.Errorf("id %q: got %s, want a directory right below %s", id, dir, d.Path)
		}
		if other, ok := seen[dir]; ok {
			t.Errorf("ids %q and %q: got one directory", id, other)
		}
		seen[dir] = id
	}
}

func TestAnUnknownSharingIsRefused(t *testing.T) {
	if _, _, err := (cachedir.Dirs{Path: t.TempDir()}).Acquire(t.Context(), "id", "any", empty); err == nil {
		t.Error("got no error")
	}
}

func TestADirectoryIsFilledOnceAndWhole(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	broken := errors.New("broken")
	_, _, err := d.Acquire(t.Context(), "id", "shared", func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o600), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v, want fill's error", err)
	}
	for _, e := range entries(t, d) {
		if e.IsDir() {
			t.Errorf("a fill that failed left %s", e.Name())
		}
	}
	fills := 0
	fill := func(dir string) error {
		fills++
		return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o600)
	}
	for range 2 {
		// A lock that was left behind would make this wait for ever.
		dir, release, err := d.Acquire(t.Context(), "id", "locked", fill)
		must(t, err)
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || names[0].Name() != "whole" {
			t.Errorf("got %v, %v, want what fill made", names, err)
		}
		must(t, release())
	}
	if fills != 1 {
		t.Errorf("filled %d times, want once", fills)
	}
}

func TestWhatAKilledProcessLeftHalfFilledIsMadeAgain(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	dir, release := acquire(t, d, "shared")
	release()
	must(t, os.Rename(dir, dir+".new"))
	must(t, os.WriteFile(filepath.Join(dir+".new", "half"), nil, 0o600))
	again, release := acquire(t, d, "shared")
	defer release()
	if names, err := os.ReadDir(again); err != nil || len(names) != 0 {
		t.Errorf("got %v, %v, want an empty directory", names, err)
	}
}

func TestUsersAtOnceFillADirectoryOnce(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	var mu sync.Mutex
	fills := 0
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, release, err := d.Acquire(t.Context(), "id", "shared", func(string) error {
				mu.Lock()
				defer mu.Unlock()
				fills++
				return nil
			})
			if err == nil {
				err = release()
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if fills != 1 {
		t.Errorf("filled %d times, want once", fills)
	}
}

func TestOnlyDirectoriesThatNobodyHasAreRemoved(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	used, end := otherProcess(t, d, "private")
	free, release := acquire(t, d, "private")
	must(t, os.WriteFile(filepath.Join(free, "file"), nil, 0o600))
	release()
	if n, err := d.RemoveUnused(); err != nil || n != 1 {
		t.Errorf("got %d, %v, want 1", n, err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("the one in use: %v, want it kept", err)
	}
	if _, err := os.Stat(free); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the free one: got %v, want it gone", err)
	}
	end()
	if n, err := d.RemoveUnused(); err != nil || n != 1 {
		t.Errorf("after its use: got %d, %v, want 1", n, err)
	}
	if _, release := acquire(t, d, "locked"); release != nil {
		release()
	}
}

func TestADirectoryThatIsBeingFilledIsNotRemoved(t *testing.T) {
	d := cachedir.Dirs{Path: t.TempDir()}
	dir, release, err := d.Acquire(t.Context(), "id", "shared", func(fresh string) error {
		if n, err := d.RemoveUnused(); n != 0 || err != nil {
			return fmt.Errorf("removed %d, %w", n, err)
		}
		return os.WriteFile(filepath.Join(fresh, "file"), nil, 0o600)
	})
	must(t, err)
	if _, err := os.Stat(filepath.Join(dir, "file")); err != nil {
		t.Errorf("got %v, want the directory whole", err)
	}
	must(t, release())
	must(t, os.Rename(dir, dir+".new"))
	if n, err := d.RemoveUnused(); n != 1 || err != nil {
		t.Errorf("half filled by a killed process: got %d, %v, want it removed", n, err)
	}
}

func entries(t *testing.T, d cachedir.Dirs) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(d.Path)
	must(t, err)
	return list
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
