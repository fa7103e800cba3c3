package executor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// base is a layer with a root directory of its own and a user.
func base(t *testing.T, b *bed) []storage.Layer {
	t.Helper()
	b.script(commands{"base": func(ctx context.Context, s sandbox.Spec) error {
		err := writes(map[string]string{"etc/passwd": "app:x:5:6::/home/app:/bin/sh\n", "etc/group": "app:x:6:\nwheel:x:10:app\n"})(ctx, s)
		return errors.Join(err, os.Chmod(s.Rootfs, 0o711))
	}})
	return b.mustRun("FROM scratch\nRUN base")
}

func TestACommandRunsOnAnImageAndLeavesNothing(t *testing.T) {
	b := newBed(t)
	layers := base(t, b)
	b.runner.Command = func(_ context.Context, s sandbox.Spec) error {
		fi, err := os.Stat(s.Rootfs)
		if err != nil || fi.Mode().Perm() != 0o711 {
			return fmt.Errorf("got root %v, %w, want the image's mode 711", fi, err)
		}
		fmt.Fprint(s.Stdout, "hello")
		return errors.Join(os.WriteFile(filepath.Join(s.Rootfs, "scratch"), nil, 0o600), &sandbox.ExitError{Code: 3})
	}
	var out bytes.Buffer
	err := Command(t.Context(), b.machine, layers, &plan.Run{Args: []string{"x"}, Env: []string{"A=1"}, Dir: "/w", User: "app", Network: "none"}, CommandOptions{
		Stdout: &out, Mounts: []sandbox.Mount{{Type: sandbox.MountBind, Source: t.TempDir(), Target: "/volume"}},
	})
	exit, ok := errors.AsType[*sandbox.ExitError](err)
	if !ok || exit.Code != 3 || out.String() != "hello" {
		t.Errorf("got %v and %q, want exit code 3 and hello", err, out.String())
	}
	if all, err := b.store.All(t.Context()); err != nil || len(all) != len(layers) {
		t.Errorf("got %d layers, %v, want %d as before", len(all), err, len(layers))
	}
	specs := b.runner.Specs()
	s := specs[len(specs)-1]
	if s.User.UID != 5 || s.User.GID != 6 || !slices.Equal(s.User.Groups, []uint32{6, 10}) {
		t.Errorf("got user %+v, want 5:6 with groups 6 and 10", s.User)
	}
	if want := []string{"A=1", "PATH=" + plan.DefaultPath, "HOME=/home/app"}; !slices.Equal(s.Env, want) {
		t.Errorf("got environment %q, want %q", s.Env, want)
	}
	if s.Dir != "/w" || s.Network != sandbox.NetworkNone {
		t.Errorf("got directory %s and network %s, want those of the command", s.Dir, s.Network)
	}
}

func TestACommandOnALayerThatIsGoneFails(t *testing.T) {
	b := newBed(t)
	err := Command(t.Context(), b.machine, []storage.Layer{{ID: "gone"}}, &plan.Run{Args: []string{"x"}}, CommandOptions{})
	if !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// recordedLayers remembers what was staged.
type recordedLayers struct {
	storage.Layers
	dirs []string
}

func (r *recordedLayers) Stage(ctx context.Context) (storage.Staged, error) {
	staged, err := r.Layers.Stage(ctx)
	if err == nil {
		r.dirs = append(r.dirs, staged.Dir())
	}
	return staged, err
}

func TestNothingStagedIsLeftBehind(t *testing.T) {
	b := newBed(t)
	b.file("f", "x")
	layers := &recordedLayers{Layers: b.store.Layers}
	b.machine.Layers = layers
	b.script(commands{"fail": func(context.Context, sandbox.Spec) error { return &sandbox.ExitError{Code: 1} }})
	b.mustRun("FROM scratch\nRUN ok\nRUN --mount=target=/src,rw ok2\nWORKDIR /w\nCOPY f /f")
	for _, text := range []string{"RUN fail", "RUN --mount=target=/src,rw fail", "RUN --mount=type=secret,id=x,required ok", "COPY --chown=nobody f /g", "COPY --chmod=x f /g"} {
		if _, err := b.run("FROM scratch\n" + text); err == nil {
			t.Errorf("%s: got no error", text)
		}
	}
	must(t, Command(t.Context(), b.machine, nil, &plan.Run{Args: []string{"x"}}, CommandOptions{}))
	if len(layers.dirs) < 10 {
		t.Errorf("staged %d times, want 10 or more", len(layers.dirs))
	}
	for _, dir := range layers.dirs {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v, want it gone", dir, err)
		}
	}
	temp, err := os.ReadDir(b.machine.TempDir)
	must(t, err)
	for _, e := range temp {
		if strings.HasPrefix(e.Name(), "file-") || strings.HasPrefix(e.Name(), "rootfs-") {
			t.Errorf("got %s left in the temporary directory", e.Name())
		}
	}
}

func TestTheEnvironmentOfTheDockerfileWins(t *testing.T) {
	b := newBed(t)
	b.machine.CABundle = filepath.Join(t.TempDir(), "ca.crt")
	must(t, os.WriteFile(b.machine.CABundle, []byte("pem"), 0o600))
	layers := b.mustRun("FROM scratch\nENV HOME=/mine PIP_CERT=/own\nRUN x")
	env := b.runner.Specs()[0].Env
	for _, want := range []string{"HOME=/mine", "PIP_CERT=/own", "SSL_CERT_FILE=/run/mstage/ca-bundle.crt", "PATH=" + plan.DefaultPath} {
		if !slices.Contains(env, want) {
			t.Errorf("got environment %q, want %s in it", env, want)
		}
	}
	for _, name := range []string{"HOME", "PIP_CERT", "PATH"} {
		if n := len(slices.DeleteFunc(slices.Clone(env), func(kv string) bool { return !strings.HasPrefix(kv, name+"=") })); n != 1 {
			t.Errorf("%s is set %d times, want once", name, n)
		}
	}
	if m, err := mountAt(b.runner.Specs()[0], "/run/mstage/ca-bundle.crt"); err != nil || !m.ReadOnly || m.Source != b.machine.CABundle {
		t.Errorf("got %+v, %v, want the bundle, read-only", m, err)
	}
	if got := b.names(layers[0]); len(got) != 0 {
		t.Errorf("the layer holds %q, want nothing", got)
	}
	b.machine.CABundle = ""
	b.mustRun("FROM scratch\nENV HOME=/mine PIP_CERT=/own\nRUN x")
	if got := len(b.ran()); got != 1 {
		t.Error("a build without the bundle ran the step again, want it cached")
	}
}

func TestAHereDocumentWithAProgramLineIsAFileForItsRun(t *testing.T) {
	b := newBed(t)
	var data []byte
	b.runner.Command = func(_ context.Context, s sandbox.Spec) error {
		m, err := mountAt(s, "/dev/pipes/EOF")
		if err != nil {
			return err
		}
		fi, err := os.Stat(m.Source)
		if err != nil || fi.Mode().Perm() != 0o755 {
			return fmt.Errorf("got %v, %w, want mode 755", fi, err)
		}
		data, err = os.ReadFile(m.Source)
		return err
	}
	b.mustRun("FROM scratch\nRUN <<EOF\n#!/bin/x\ny\nEOF")
	if string(data) != "#!/bin/x\ny\n" {
		t.Errorf("got %q, want the document", data)
	}
}
