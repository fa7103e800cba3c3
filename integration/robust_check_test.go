package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/overlay"
)

// checkStoreVariable names the store that this process, started in a worker's
// namespaces, is to look at.
const checkStoreVariable = "MSTAGE_TEST_CHECK_STORE"

func init() {
	root := os.Getenv(checkStoreVariable)
	if root == "" {
		return
	}
	problems, err := checkStore(context.Background(), root)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stdout).Encode(problems); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// sound fails the test unless every byte below the store belongs to something
// that the store knows, and both catalogues are whole.
func (s *testStore) sound() {
	s.t.Helper()
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	aside := s.t.TempDir() // unshare keeps its own state there, not in the store
	var stderr bytes.Buffer
	cmd := exec.Command(s.bin, "--root", filepath.Join(aside, "store"), "unshare", self)
	cmd.Env = append(os.Environ(), checkStoreVariable+"="+s.root, "TMPDIR="+aside)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("check the store: %v\n%s", err, stderr.String())
	}
	var problems []string
	if err := json.Unmarshal(out, &problems); err != nil {
		s.t.Fatalf("check the store: %v in %q", err, out)
	}
	for _, p := range problems {
		s.t.Errorf("store: %s", p)
	}
}

// checkStore lists what is wrong with a store. The files come first: opening a
// store mends it.
func checkStore(ctx context.Context, root string) (problems []string, err error) {
	files, err := storeFiles(root)
	if err != nil {
		return nil, err
	}
	state, err := os.MkdirTemp("", "state-")
	if err != nil {
		return nil, err
	}
	s, err := overlay.Open(ctx, overlay.Options{
		Root: root, RunRoot: filepath.Join(state, "run"),
		Warn: func(text string) { problems = append(problems, "warning: "+text) },
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close(), os.RemoveAll(state)) }()
	found, err := s.Check(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range found {
		problems = append(problems, fmt.Sprintf("check: layer %s: %s", p.Layer, p.Text))
	}
	owned, err := newStoreOwners(ctx, s)
	if err != nil {
		return nil, err
	}
	problems = append(problems, owned.unknownLayers...)
	for _, f := range files {
		if !owned.has(f) {
			problems = append(problems, "nothing owns "+f)
		}
	}
	return problems, nil
}

// storeFiles lists what is below a store, without the insides of layers.
func storeFiles(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || name == "." {
			return err
		}
		files = append(files, name)
		if e.IsDir() && layerDir.MatchString(name) {
			return fs.SkipDir
		}
		return nil
	})
	return files, err
}

var (
	layerDir  = regexp.MustCompile(`^containers/overlay/([0-9a-f]{64})$`)
	shortName = regexp.MustCompile(`^containers/overlay/l/([A-Z0-9]{26})$`)
	imageFile = regexp.MustCompile(`^images/([0-9a-f]{64})\.json$`)
	blobFile  = regexp.MustCompile(`^blobs/sha256/([0-9a-f]{64})$`)
	// fixedFiles are there in any store, or may be. A .tmp- file of a process that
	// was killed is collected when it is a minute old.
	fixedFiles = regexp.MustCompile(`^(` + strings.Join([]string{
		`format`, `overlay-ok`, `synced`, `unsynced`, `stat-index(/[0-9a-f]{32}\.stat)?`,
		`index\.db`, `index\.db\.lock`, `index\.db\.unsynced`,
		`images`, `blobs`, `blobs/sha256`, `blobs/tmp`, `leases`, `tmp`, `run`, `cache`,
		`empty(/[01])?`, `locks(/(collect|stage|sync))?`,
		`cache/[0-9a-f]{64}(/.*|\.lock|\.make\.lock)?`,
		`containers(/(storage|userns)\.lock)?`,
		`containers/overlay(/(l|staging|tempdirs|\.has-mount-program))?`,
		`containers/overlay-layers(/(tmp|\.tmp-[a-z.-]+\d+|layers\.lock|layers\.json|volatile-layers\.json))?`,
		`containers/overlay-images(/(images\.lock|images\.json))?`,
		`containers/overlay-containers(/(containers\.lock|containers\.json|volatile-containers\.json))?`,
	}, "|") + `)$`)
)

// storeOwners is what a store knows of.
type storeOwners struct {
	layers, images, blobs, shortNames map[string]bool
	// unknownLayers tells about layers that only one of the catalogues has.
	unknownLayers []string
}

func newStoreOwners(ctx context.Context, s *overlay.Store) (*storeOwners, error) {
	o := &storeOwners{layers: map[string]bool{}, images: map[string]bool{}, blobs: map[string]bool{}, shortNames: map[string]bool{}}
	all, err := s.All(ctx)
	if err != nil {
		return nil, err
	}
	uses, err := s.Index().Uses(ctx)
	if err != nil {
		return nil, err
	}
	used := map[storage.LayerID]bool{}
	for _, u := range uses {
		used[u.ID] = u.Image || len(u.Keys) > 0
		for _, b := range u.Blobs {
			o.blobs[b.Hex()] = true
		}
	}
	for _, id := range all {
		o.layers[string(id)] = true
		if !used[id] {
			o.unknownLayers = append(o.unknownLayers, fmt.Sprintf("no step and no image has layer %s", id))
		}
		link, err := os.ReadFile(filepath.Join(s.Layout().Graph(), "overlay", string(id), "link"))
		if err != nil {
			return nil, err
		}
		o.shortNames[string(link)] = true
	}
	images, err := s.Index().AllImages(ctx)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		o.images[img.ID.Hex()] = true
	}
	return o, nil
}

// has reports whether a path below the store has its place there.
func (o *storeOwners) has(name string) bool {
	for pattern, known := range map[*regexp.Regexp]map[string]bool{
		layerDir: o.layers, shortName: o.shortNames, imageFile: o.images, blobFile: o.blobs,
	} {
		if m := pattern.FindStringSubmatch(name); m != nil {
			return known[m[1]]
		}
	}
	return fixedFiles.MatchString(name)
}

// ownBinary gives the store a copy of the binary for itself, by which its
// processes are told from those of other tests.
func (s *testStore) ownBinary() {
	s.t.Helper()
	own := filepath.Join(s.t.TempDir(), "mstage")
	if err := copyFile(s.bin, own); err != nil {
		s.t.Fatal(err)
	}
	s.bin = own
}

// pollEvery is how often a state is looked at that nothing tells about.
const pollEvery = 2 * time.Millisecond

// within polls until done returns "", at most for limit; then it returns what
// done said last.
func within(limit time.Duration, done func() string) string {
	deadline := time.After(limit)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		text := done()
		if text == "" {
			return ""
		}
		select {
		case <-deadline:
			return text
		case <-tick.C:
		}
	}
}

// endOfProcesses is how long a killed build's processes may take to go: the
// kernel tears two namespaces and their mounts down on a loaded machine.
const endOfProcesses = 10 * time.Second

// nothingLeft fails the test while the store has a process or a mount. pidNS
// is the pid namespace that its worker had, "" when none was seen.
func (s *testStore) nothingLeft(pidNS string) {
	s.t.Helper()
	if left := within(endOfProcesses, func() string { return s.processes(pidNS) }); left != "" {
		s.t.Errorf("processes left:\n%s", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, s.root) {
			s.t.Errorf("mount left: %s", line)
		}
	}
}

// processes lists the processes that run the store's binary, or are in the
// pid namespace, or have the store in their environment.
func (s *testStore) processes(pidNS string) string {
	var found strings.Builder
	for _, pid := range allProcesses(s.t) {
		proc := fmt.Sprintf("/proc/%d/", pid)
		exe, _ := os.Readlink(proc + "exe") // other users' can't be read
		ns, _ := os.Readlink(proc + "ns/pid")
		env, _ := os.ReadFile(proc + "environ")
		ours := exe == s.bin || pidNS != "" && ns == pidNS || bytes.Contains(env, []byte("MSTAGE_ROOT="+s.root))
		// A zombie whose parent was killed waits for init, on some hosts for seconds.
		if state, _ := stateOf(pid); ours && state != "Z" && pid != os.Getpid() {
			line, _ := os.ReadFile(proc + "cmdline")
			fmt.Fprintf(&found, "%d %s %q\n", pid, exe, line)
		}
	}
	return found.String()
}

// allProcesses lists the process IDs of this pid namespace.
func allProcesses(t testing.TB) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// children lists the processes whose parent is pid.
func children(t testing.TB, pid int) []int {
	t.Helper()
	var found []int
	for _, p := range allProcesses(t) {
		if _, parent := stateOf(p); parent == pid {
			found = append(found, p)
		}
	}
	return found
}

// stateOf returns a process's state letter and parent; "" when it is gone.
func stateOf(pid int) (state string, parent int) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	// The name, in parentheses, may hold anything. Source: proc(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return "", 0
	}
	parent, err = strconv.Atoi(fields[1])
	if err != nil {
		return "", 0
	}
	return fields[0], parent
}
