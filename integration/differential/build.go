package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// caseTimeout ends a command that hangs; a slow case takes some seconds.
const caseTimeout = 4 * time.Minute

// base is an image that both builders know by name: mstage from its store,
// BuildKit as a named context, from an OCI layout.
type base struct {
	name, layout, digest string
	image                *image
}

// place is where a case is built.
type place struct{ context, out string }

func (p place) mstageImage() string   { return filepath.Join(p.out, "mstage.tar") }
func (p place) mstageTree() string    { return filepath.Join(p.out, "mstage-fs.tar") }
func (p place) buildkitImage() string { return filepath.Join(p.out, "buildkit.tar") }

// makeBases imports the image busybox and builds the images that cases start from.
func (s settings) makeBases(ctx context.Context, cases []testCase) ([]base, error) {
	rootFS := filepath.Join(s.work, "base.tar")
	if err := writeRootFS(rootFS); err != nil {
		return nil, err
	}
	if e := s.runMstage(ctx, "/", "import", rootFS, "busybox"); e.err != nil {
		return nil, fmt.Errorf("import %s: %w\n%s", rootFS, e.err, e.text)
	}
	todo := []testCase{{name: basePrefix + "busybox", dockerfile: "FROM busybox\n"}}
	for _, c := range cases {
		if c.isBase() {
			todo = append(todo, c)
		}
	}
	var bases []base
	for _, c := range todo {
		b, err := s.makeBase(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		bases = append(bases, b)
	}
	return bases, nil
}

// makeBase builds a base into mstage's store and a layout.
func (s settings) makeBase(ctx context.Context, c testCase) (base, error) {
	b := base{name: strings.TrimPrefix(c.name, basePrefix)}
	at, err := s.makeContext(ctx, "base-"+b.name, c)
	if err != nil {
		return b, err
	}
	b.layout = filepath.Join(at.out, "layout")
	e := s.runMstage(ctx, "/", "build", "-q", "--pull=never", "-t", b.name, "-o", "type=image", "-o", "type=oci,tar=false,dest="+b.layout, at.context)
	if e.err != nil {
		return b, fmt.Errorf("%w\n%s", e.err, e.text)
	}
	data, err := os.ReadFile(filepath.Join(b.layout, "index.json"))
	if err != nil {
		return b, err
	}
	index, err := parseIndex(data)
	if err != nil {
		return b, err
	}
	b.digest = index.Digest
	b.image, err = readLayout(b.layout)
	return b, err
}

// parseIndex returns the descriptor of the only manifest of a layout.
func parseIndex(data []byte) (descriptor, error) {
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(data, &index); err != nil {
		return descriptor{}, fmt.Errorf("index.json: %w", err)
	}
	if len(index.Manifests) != 1 {
		return descriptor{}, fmt.Errorf("index.json: %d manifests, want 1", len(index.Manifests))
	}
	return index.Manifests[0], nil
}

// environment is all that commands get of it.
func (s settings) environment() []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + s.work, "TMPDIR=" + filepath.Join(s.work, "tmp"), "LANG=C.UTF-8",
	}
}

// runMstage runs mstage in dir, as the owner of the work directory.
func (s settings) runMstage(ctx context.Context, dir string, args ...string) ending {
	ctx, cancel := context.WithTimeout(ctx, caseTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.mstage, append([]string{"--root", filepath.Join(s.work, "store")}, args...)...)
	cmd.Dir = dir
	cmd.Env = s.environment()
	if int(s.user.uid) != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: s.user.uid, Gid: s.user.gid}}
	}
	text, err := cmd.CombinedOutput()
	return ending{string(text), err}
}

// prepare makes the context of a case, a directory for outputs, and in it its
// secrets, whose files it returns by id.
func (s settings) prepare(ctx context.Context, name string, c testCase) (place, map[string]string, error) {
	at, err := s.makeContext(ctx, name, c)
	if err != nil {
		return at, nil, err
	}
	secrets, err := writeSecrets(at.out, c)
	return at, secrets, err
}

// makeContext makes the context of a case and an empty directory for outputs.
func (s settings) makeContext(ctx context.Context, name string, c testCase) (place, error) {
	dir := filepath.Join(s.work, name)
	at := place{context: filepath.Join(dir, "ctx"), out: filepath.Join(dir, "out")}
	if err := os.RemoveAll(dir); err != nil {
		return at, err
	}
	for _, d := range []string{at.context, at.out} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return at, err
		}
		if err := os.Chown(d, int(s.user.uid), int(s.user.gid)); err != nil {
			return at, err
		}
	}
	if err := s.runSetup(ctx, at.context, c); err != nil {
		return at, err
	}
	if c.ignore != "" {
		if err := os.WriteFile(filepath.Join(at.context, ".dockerignore"), []byte(c.ignore), 0o644); err != nil {
			return at, err
		}
	}
	dockerfile := filepath.Join(at.context, "Dockerfile")
	if err := os.WriteFile(dockerfile, []byte(c.dockerfile), 0o644); err != nil {
		return at, err
	}
	if text, err := exec.CommandContext(ctx, "touch", "-d", c.sourceTime(), dockerfile, at.context).CombinedOutput(); err != nil {
		return at, fmt.Errorf("touch: %w\n%s", err, text)
	}
	return at, nil
}

// runSetup runs a case's script in dir, as the root of the namespaces that mstage
// builds in: whoever may build may set attributes and capabilities there. Times
// that the script did not set become the case's.
func (s settings) runSetup(ctx context.Context, dir string, c testCase) error {
	if c.setup == "" {
		return nil
	}
	script := "umask 022\n" + c.setup + `
find . -mindepth 1 -newermt 2023-01-01 -exec touch -h -d "$1" {} +
find . -mindepth 1 -type d -newermt 2020-01-01 -exec touch -d @1600000000 {} +`
	e := s.runMstage(ctx, dir, "unshare", "bash", "-euc", script, "setup", c.sourceTime())
	if e.err != nil {
		return fmt.Errorf("setup: %w\n%s", e.err, e.text)
	}
	return nil
}

// writeSecrets writes a case's secrets and returns their files by id.
func writeSecrets(dir string, c testCase) (map[string]string, error) {
	files := map[string]string{}
	for _, v := range c.secrets {
		files[v.id] = filepath.Join(dir, "secret-"+v.id)
		if err := os.WriteFile(files[v.id], []byte(v.value), 0o644); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// buildMstage builds a case into mstage.tar and further outputs. Without the cache,
// as a case would else get the files of another one with equal bytes and other times.
func (s settings) buildMstage(ctx context.Context, c testCase, at place, secrets map[string]string, outputs ...string) ending {
	args := []string{"build", "-q", "--pull=never", "--no-cache=" + strconv.FormatBool(!s.cached), "-o", "type=oci,dest=" + at.mstageImage()}
	for _, o := range outputs {
		args = append(args, "-o", o)
	}
	for _, a := range c.args {
		args = append(args, "--build-arg", a)
	}
	for _, l := range c.labels {
		args = append(args, "--label", l)
	}
	if c.target != "" {
		args = append(args, "--target", c.target)
	}
	for id, file := range secrets {
		args = append(args, "--secret", "id="+id+",src="+file)
	}
	return s.runMstage(ctx, "/", append(args, at.context)...)
}

// buildBuildkit builds a case into buildkit.tar.
func (s settings) buildBuildkit(ctx context.Context, c testCase, at place, secrets map[string]string, bases []base) ending {
	args := []string{
		"--addr", s.addr, "build", "--frontend", "dockerfile.v0", "--progress", "plain",
		"--local", "context=" + at.context, "--local", "dockerfile=" + at.context,
		"--output", "type=oci,dest=" + at.buildkitImage(),
	}
	if !s.cached {
		args = append(args, "--opt", "no-cache=")
	}
	for _, b := range bases {
		args = append(args, "--oci-layout", b.name+"="+b.layout, "--opt", "context:"+b.name+"=oci-layout://"+b.name+"@"+b.digest)
	}
	for _, a := range c.args {
		args = append(args, "--opt", "build-arg:"+a)
	}
	for _, l := range c.labels {
		args = append(args, "--opt", "label:"+l)
	}
	if c.target != "" {
		args = append(args, "--opt", "target="+c.target)
	}
	for id, file := range secrets {
		args = append(args, "--secret", "id="+id+",src="+file)
	}
	ctx, cancel := context.WithTimeout(ctx, caseTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.buildctl, args...)
	cmd.Env = s.environment()
	text, err := cmd.CombinedOutput()
	return ending{string(text), err}
}
