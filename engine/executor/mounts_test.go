package executor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

func TestMountPointsLeaveNothingInTheLayer(t *testing.T) {
	b := newBed(t)
	b.machine.Secrets = map[string][]byte{"a": nil}
	points := []string{"proc", "sys", "dev", "etc/hosts", "etc/resolv.conf", "run/secrets/a", "deep/tmp", "cache"}
	b.script(commands{"look": func(_ context.Context, s sandbox.Spec) error {
		for _, p := range points {
			if _, err := os.Lstat(filepath.Join(s.Rootfs, p)); err != nil {
				return err
			}
		}
		return nil
	}})
	layers := b.mustRun("FROM scratch\nRUN --mount=type=secret,id=a --mount=type=tmpfs,target=/deep/tmp --mount=type=cache,target=/cache look")
	if got := b.names(layers[0]); len(got) != 0 {
		t.Errorf("the layer holds %q, want nothing", got)
	}
	for _, s := range b.runner.Specs() {
		if _, err := os.Lstat(s.Rootfs); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the mount's directory: got %v, want it gone", err)
		}
	}
}

func TestMountPointsThatALayerHidesAreMadeAndRemovedAgain(t *testing.T) {
	b := newBed(t)
	b.machine.Secrets = map[string][]byte{"a": nil, "b": nil}
	b.script(commands{
		"hide": func(_ context.Context, s sandbox.Spec) error {
			run := filepath.Join(s.Rootfs, "run")
			return errors.Join(os.Mkdir(run, 0o755), os.RemoveAll(run), os.Mkdir(run, 0o700), os.RemoveAll(filepath.Join(s.Rootfs, "etc")))
		},
		"look": func(_ context.Context, s sandbox.Spec) error {
			for _, name := range []string{"run/secrets/a", "run/secrets/b", "run/other/c", "etc/hosts"} {
				if _, err := os.Lstat(filepath.Join(s.Rootfs, name)); err != nil {
					return err
				}
			}
			return os.WriteFile(filepath.Join(s.Rootfs, "run/own"), nil, 0o600)
		},
	})
	layers := b.mustRun("FROM scratch\nRUN hide\nRUN --mount=type=secret,id=a --mount=type=secret,id=b --mount=type=tmpfs,target=/run/other/c look")
	if got := b.names(layers[1]); !slices.Equal(got, []string{"run", "run/own"}) && !slices.Equal(got, []string{"etc", "run", "run/own"}) {
		t.Errorf("the layer holds %q, want what the command wrote", got)
	}
	var st unix.Stat_t
	if err := unix.Lstat(b.path(layers[1], "etc"), &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		t.Error("the layer holds a directory /etc, want it removed as it was")
	}
}

func TestAParentThatBecameALinkLeadsNowhere(t *testing.T) {
	b := newBed(t)
	b.machine.Secrets = map[string][]byte{"a": nil}
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "a"), nil, 0o600))
	b.script(commands{
		"hide": func(_ context.Context, s sandbox.Spec) error {
			return errors.Join(os.RemoveAll(filepath.Join(s.Rootfs, "run")), os.Mkdir(filepath.Join(s.Rootfs, "run"), 0o755))
		},
		"attack": func(_ context.Context, s sandbox.Spec) error {
			secrets := filepath.Join(s.Rootfs, "run/secrets")
			return errors.Join(os.RemoveAll(secrets), os.Symlink(outside, secrets))
		},
		"climb": func(_ context.Context, s sandbox.Spec) error {
			secrets := filepath.Join(s.Rootfs, "run/secrets")
			return errors.Join(os.RemoveAll(secrets), os.Symlink(strings.Repeat("../", 30)+outside, secrets))
		},
	})
	for _, attack := range []string{"attack", "climb"} {
		layers := b.mustRun("FROM scratch\nRUN hide\nRUN --mount=type=secret,id=a " + attack)
		if _, err := os.Lstat(filepath.Join(outside, "a")); err != nil {
			t.Errorf("%s: the file of the host: %v, want it untouched", attack, err)
		}
		if fi, err := os.Lstat(b.path(layers[1], "run/secrets")); err != nil || fi.Mode().Type() != os.ModeSymlink {
			t.Errorf("%s: got %v, %v, want the command's link kept", attack, fi, err)
		}
	}
}

func TestSecretsAreSeenByTheirRunOnly(t *testing.T) {
	b := newBed(t)
	b.machine.Secrets = map[string][]byte{"token": []byte("s3cret"), "both": []byte("b")}
	var sources []string
	b.script(commands{
		"file": func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, "/run/secrets/token")
			if err != nil {
				return err
			}
			sources = append(sources, m.Source)
			var st unix.Stat_t
			if err := unix.Stat(m.Source, &st); err != nil {
				return err
			}
			data, err := os.ReadFile(m.Source)
			if string(data) != "s3cret" || st.Mode&0o7777 != 0o440 || st.Uid != 7 || st.Gid != 8 || !m.ReadOnly {
				return fmt.Errorf("got %q, mode %o, owner %d:%d, read-only %t, %w", data, st.Mode, st.Uid, st.Gid, m.ReadOnly, err)
			}
			return nil
		},
		"variable": func(_ context.Context, s sandbox.Spec) error {
			if !slices.Contains(s.Env, "TOKEN=s3cret") || len(s.Mounts) != 0 {
				return fmt.Errorf("got %q and mounts %v, want the variable alone", s.Env, s.Mounts)
			}
			return nil
		},
		"both": func(_ context.Context, s sandbox.Spec) error {
			if _, err := mountAt(s, "/f"); err != nil || !slices.Contains(s.Env, "B=b") {
				return fmt.Errorf("got %q, %w, want the variable and the file", s.Env, err)
			}
			return nil
		},
		"optional": func(_ context.Context, s sandbox.Spec) error {
			if len(s.Mounts) != 0 {
				return fmt.Errorf("got mounts %v, want none", s.Mounts)
			}
			return nil
		},
	})
	b.mustRun("FROM scratch\nRUN --mount=type=secret,id=token,mode=0440,uid=7,gid=8 file\nRUN --mount=type=secret,id=token,env=TOKEN variable\n" +
		"RUN --mount=type=secret,id=both,env=B,target=/f both\nRUN --mount=type=secret,id=none optional")
	for _, source := range sources {
		if _, err := os.Lstat(source); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, want it gone", source, err)
		}
	}
	_, err := b.run("FROM scratch\nRUN --mount=type=secret,id=none,required x")
	fault, ok := errors.AsType[*FaultError](err)
	if !ok || !strings.Contains(fault.Hint, "--secret id=none,src=FILE") {
		t.Errorf("a required secret that is missing: got %v, want a fault with a hint", err)
	}
}

func TestTheContentOfASecretIsNotPartOfTheKey(t *testing.T) {
	b := newBed(t)
	for _, value := range []string{"one", "two"} {
		b.machine.Secrets = map[string][]byte{"token": []byte(value)}
		b.mustRun("FROM scratch\nRUN --mount=type=secret,id=token use")
	}
	if got := b.ran(); len(got) != 1 {
		t.Errorf("ran %q, want once", got)
	}
}

// cacheAt returns the directory that a command has for a cache.
func cacheAt(s sandbox.Spec, target string) (string, error) {
	m, err := mountAt(s, target)
	return m.Source, err
}

func TestACacheOutlivesBuildsAndIsNoPartOfTheImage(t *testing.T) {
	b := newBed(t)
	b.script(commands{
		"put": func(_ context.Context, s sandbox.Spec) error {
			dir, err := cacheAt(s, "/c")
			return errors.Join(err, os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600))
		},
		"get": func(_ context.Context, s sandbox.Spec) error {
			dir, err := cacheAt(s, "/elsewhere")
			if err == nil {
				_, err = os.Stat(filepath.Join(dir, "kept"))
			}
			return err
		},
	})
	layers := b.mustRun("FROM scratch\nRUN --mount=type=cache,id=c,target=/c put")
	if got := b.names(layers[0]); len(got) != 0 {
		t.Errorf("the layer holds %q, want nothing", got)
	}
	b.mustRun("FROM scratch\nRUN --mount=type=cache,id=c,target=/elsewhere get")
	if n, err := b.caches.RemoveUnused(); n != 1 || err != nil {
		t.Errorf("got %d caches, %v, want one that nobody has", n, err)
	}
}

func TestACacheIsMadeAsItsMountSays(t *testing.T) {
	b := newBed(t)
	check := func(target string, mode, uid, gid uint32, names ...string) func(context.Context, sandbox.Spec) error {
		return func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, target)
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Stat(m.Source, &st); err != nil {
				return err
			}
			if st.Mode&0o7777 != mode || st.Uid != uid || st.Gid != gid {
				return fmt.Errorf("got mode %o, owner %d:%d, want %o, %d:%d", st.Mode&0o7777, st.Uid, st.Gid, mode, uid, gid)
			}
			list, err := os.ReadDir(m.Source)
			if err != nil || len(list) != len(names) || len(list) > 0 && list[0].Name() != names[0] {
				return fmt.Errorf("got %v, %w, want %q", list, err, names)
			}
			return nil
		}
	}
	b.script(commands{
		"make":    writes(map[string]string{"x/file": "1"}),
		"default": check("/c", 0o755, 0, 0),
		"open":    check("/c", 0o1777, 0, 0),
		"owned":   check("/c", 0o2770, 5, 6),
		"filled":  check("/c", 0o755, 0, 0, "file"),
	})
	b.mustRun("FROM scratch AS a\nRUN make\nFROM scratch\nRUN --mount=type=cache,target=/c default\nRUN --mount=type=cache,target=/c,mode=1777 open\n" +
		"RUN --mount=type=cache,target=/c,mode=02770,uid=5,gid=6 owned\nRUN --mount=type=cache,target=/c,from=a,source=/x filled")
}

func TestACacheThatIsFilledFromAnotherStageIsAnother(t *testing.T) {
	b := newBed(t)
	b.script(commands{
		"v1": writes(map[string]string{"v": "1"}), "v2": writes(map[string]string{"v": "2"}),
		"see": func(_ context.Context, s sandbox.Spec) error {
			dir, err := cacheAt(s, "/c")
			if err != nil {
				return err
			}
			got, err := os.ReadFile(filepath.Join(dir, "v"))
			fmt.Fprint(s.Stdout, string(got))
			return err
		},
	})
	for _, v := range []string{"1", "2"} {
		b.mustRun("FROM scratch AS a\nRUN v" + v + "\nFROM scratch\nRUN --mount=type=cache,target=/c,from=a see")
		for _, e := range b.events {
			if len(e.Data) > 0 && string(e.Data) != v {
				t.Errorf("got %q, want %q", e.Data, v)
			}
		}
	}
}

func TestOneRunMayMountALockedCacheTwice(t *testing.T) {
	b := newBed(t)
	b.script(commands{"use": func(_ context.Context, s sandbox.Spec) error {
		one, errOne := cacheAt(s, "/1")
		two, errTwo := cacheAt(s, "/2")
		if one != two {
			return fmt.Errorf("got %s and %s, want one directory", one, two)
		}
		return errors.Join(errOne, errTwo)
	}})
	for _, sharing := range []string{"shared", "private", "locked"} {
		b.mustRun("FROM scratch\nRUN --mount=type=cache,id=c,target=/1,sharing=locked --mount=type=cache,id=c,target=/2,sharing=" + sharing + " use")
	}
}

func TestRunsThatLockTheSameCachesDoNotWaitForEachOther(t *testing.T) {
	b := newBed(t)
	b.noCache = true
	text := "FROM scratch AS a\nRUN --mount=type=cache,id=x,target=/1,sharing=locked --mount=type=cache,id=y,target=/2,sharing=locked a\n" +
		"FROM scratch AS b\nRUN --mount=type=cache,id=y,target=/1,sharing=locked --mount=type=cache,id=x,target=/2,sharing=locked b\n" +
		"FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /"
	for range 5 {
		b.mustRun(text)
	}
}

func TestPrivateCachesOfRunsAtOnceAreTwo(t *testing.T) {
	b := newBed(t)
	both := meet(2)
	dirs := make(chan string, 2)
	use := func(ctx context.Context, s sandbox.Spec) error {
		dir, err := cacheAt(s, "/c")
		dirs <- dir
		return errors.Join(err, both(ctx, s))
	}
	b.script(commands{"a": use, "b": use})
	b.mustRun("FROM scratch AS a\nRUN --mount=type=cache,target=/c,sharing=private a\nFROM scratch AS b\nRUN --mount=type=cache,target=/c,sharing=private b\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /")
	if one, two := <-dirs, <-dirs; one == two {
		t.Errorf("got %s twice, want two directories", one)
	}
}

func TestABindOfTheContextShowsWhatCopyWould(t *testing.T) {
	b := newBed(t)
	for name, data := range map[string]string{"shown": "1", "dir/sub": "2", "hidden": "3", ".dockerignore": "hidden\n"} {
		b.file(name, data)
	}
	b.script(commands{
		"all": func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, "/src")
			if err != nil {
				return err
			}
			if _, err := os.Lstat(filepath.Join(m.Source, "hidden")); !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("the ignored file: %w", err)
			}
			got, err := os.ReadFile(filepath.Join(m.Source, "dir/sub"))
			if string(got) != "2" || !m.ReadOnly {
				return fmt.Errorf("got %q, read-only %t, %w", got, m.ReadOnly, err)
			}
			if err := os.WriteFile(filepath.Join(m.Source, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("write: got %w, want a read-only file system", err)
			}
			return nil
		},
		"one": func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, "/file")
			if err != nil {
				return err
			}
			got, err := os.ReadFile(m.Source)
			if string(got) != "1" {
				return fmt.Errorf("got %q, %w", got, err)
			}
			return err
		},
		"write": func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, "/src")
			if err != nil {
				return err
			}
			if _, err := os.Lstat(filepath.Join(m.Source, "mine")); err == nil {
				return errors.New("what another RUN wrote is still there")
			}
			return os.WriteFile(filepath.Join(m.Source, "mine"), nil, 0o600)
		},
	})
	layers := b.mustRun("FROM scratch\nRUN --mount=target=/src all\nRUN --mount=source=shown,target=/file one\nRUN --mount=target=/src,rw write\nRUN --mount=target=/src,rw --mount=type=tmpfs,target=/t write")
	for i, l := range layers {
		if got := b.names(l); len(got) != 0 {
			t.Errorf("layer %d holds %q, want nothing", i, got)
		}
	}
	if _, err := os.Lstat(filepath.Join(b.context, "mine")); err == nil {
		t.Error("a RUN wrote to the build context")
	}
	before := len(b.ran())
	b.file("hidden", "changed")
	b.mustRun("FROM scratch\nRUN --mount=target=/src all")
	if got := len(b.ran()); got != before {
		t.Error("a change of an ignored file ran the step again")
	}
	b.file("shown", "1 changed")
	b.mustRun("FROM scratch\nRUN --mount=target=/src all")
	if got := len(b.ran()); got != before+1 {
		t.Error("a change of a mounted file did not run the step again")
	}
}

func TestABindOfAStageFollowsLinksInsideItOnly(t *testing.T) {
	b := newBed(t)
	b.script(commands{
		"make": func(ctx context.Context, s sandbox.Spec) error {
			err := writes(map[string]string{"real/f": "inside"})(ctx, s)
			return errors.Join(err, os.Symlink("/real", filepath.Join(s.Rootfs, "link")), os.Symlink("../../../../etc", filepath.Join(s.Rootfs, "out")))
		},
		"use": func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, "/t")
			if err != nil {
				return err
			}
			got, err := os.ReadFile(filepath.Join(m.Source, "f"))
			if string(got) != "inside" {
				return fmt.Errorf("got %q, %w", got, err)
			}
			return err
		},
	})
	b.mustRun("FROM scratch AS a\nRUN make\nFROM scratch\nRUN --mount=from=a,source=/link,target=/t use")
	_, err := b.run("FROM scratch AS a\nRUN make\nFROM scratch\nRUN --mount=from=a,source=/out,target=/t use")
	if _, ok := errors.AsType[*FaultError](err); !ok || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a link out of the stage: got %v, want no such file", err)
	}
}

func TestOuterMountsComeBeforeThoseInThem(t *testing.T) {
	b := newBed(t)
	b.mustRun("FROM scratch\nRUN --mount=type=tmpfs,target=/a/b/c --mount=type=tmpfs,target=/a --mount=type=tmpfs,target=/a/b x")
	var got []string
	for _, m := range b.runner.Specs()[0].Mounts {
		got = append(got, m.Target)
	}
	if !slices.Equal(got, []string{"/a", "/a/b", "/a/b/c"}) {
		t.Errorf("got %q, want outer ones first", got)
	}
}
