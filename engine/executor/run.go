package executor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mstage/mstage/engine/copy"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
)

// caBundlePath is where a RUN finds the caller's certificates.
const caBundlePath = "/run/mstage/ca-bundle.crt"

// caVariables announce the certificates to the programs that builds use.
var caVariables = []string{
	"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
}

// runStep is one RUN under way. undo runs in reverse when it is over.
type runStep struct {
	walk    *walk
	machine *Machine
	task    *task
	run     *plan.Run
	view    *chainfs.View
	staged  storage.Staged
	spec    sandbox.Spec
	// caches are the directories of the cache mounts by their ID.
	caches map[string]string
	undo   []func() error
}

// doRun runs the command over the layers below; the upper directory of its
// mount is the new layer.
func (w *walk) doRun(ctx context.Context, t *task) (rec storage.StepRecord, err error) {
	release, err := w.machine.acquire(ctx)
	if err != nil {
		return rec, err
	}
	defer release()
	r := &runStep{walk: w, machine: w.machine, task: t, run: t.step.Run}
	defer func() { err = errors.Join(err, r.close()) }()
	if r.staged, err = w.machine.Layers.Stage(ctx); err != nil {
		return rec, err
	}
	r.undo = append(r.undo, r.staged.Discard)
	r.spec.Stdout = w.vertices.output(t.vertex, 1)
	r.spec.Stderr = w.vertices.output(t.vertex, 2)
	if err := r.prepare(ctx); err != nil {
		return rec, err
	}
	if err := r.execute(ctx); err != nil {
		return rec, err
	}
	size, err := contentBytes(r.staged.Dir())
	if err != nil {
		return rec, fmt.Errorf("measure the new layer: %w", err)
	}
	return w.commit(ctx, t, r.staged, storage.Layer{Identity: w.o.Cache.ResultIdentity(t.keys[0]), SizeBytes: size})
}

// close undoes what the step set up. The first failure is told, all are tried.
func (r *runStep) close() error {
	var err error
	for _, undo := range slices.Backward(r.undo) {
		err = errors.Join(err, undo())
	}
	r.undo = nil
	return err
}

// prepare fills the sandbox's description, all but the root file system.
func (r *runStep) prepare(ctx context.Context) error {
	view, err := r.machine.view(r.task.layers)
	if err != nil {
		return err
	}
	r.view = view
	// The uppermost layer's root is the merged root: it repeats the one below.
	if err := copy.Mkdir(copy.Dest{Chain: view, Dir: r.staged.Dir(), Path: "/"}, nil); err != nil {
		return err
	}
	user, err := lookupUser(view, r.run.User)
	if err != nil {
		return err
	}
	r.spec.Args = r.run.Args
	r.spec.Env = withDefaults(r.run.Env, user.Home)
	r.spec.Dir = r.run.Dir
	r.spec.User = sandbox.User{UID: user.UID, GID: user.GID, Groups: user.Groups}
	r.spec.Hosts = r.machine.Hosts
	r.spec.Network = sandbox.NetworkMode(r.run.Network)
	r.spec.ShmBytes = r.run.ShmBytes
	for _, u := range r.run.Ulimits {
		r.spec.Ulimits = append(r.spec.Ulimits, sandbox.Ulimit(u))
	}
	r.addCABundle()
	if err := r.addFiles(); err != nil {
		return err
	}
	return r.addMounts(ctx)
}

// lookupUser finds the user that USER named.
func lookupUser(view *chainfs.View, name string) (copy.User, error) {
	user, err := copy.LookupUser(view, name)
	if err != nil {
		err = &FaultError{Err: err, Hint: "a number needs no entry in the image"}
	}
	return user, err
}

// execute mounts the root file system, runs the command and unmounts.
func (r *runStep) execute(ctx context.Context) error {
	root, err := r.mountRoot(ctx)
	if err != nil {
		return err
	}
	r.spec.Rootfs = root.dir
	err = r.machine.Runner.Run(ctx, r.spec)
	return errors.Join(err, root.close())
}

// withDefaults adds HOME and PATH when the environment has none.
func withDefaults(env []string, home string) []string {
	env = slices.Clone(env)
	if !hasVariable(env, "PATH") {
		env = append(env, "PATH="+plan.DefaultPath)
	}
	if !hasVariable(env, "HOME") {
		env = append(env, "HOME="+home)
	}
	return env
}

// hasVariable reports whether env sets a variable.
func hasVariable(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// addCABundle shows the caller's certificates. A variable that the Dockerfile
// sets wins.
func (r *runStep) addCABundle() {
	if r.machine.CABundle == "" {
		return
	}
	r.spec.Mounts = append(r.spec.Mounts, sandbox.Mount{
		Type: sandbox.MountBind, Source: r.machine.CABundle, Target: caBundlePath, ReadOnly: true,
	})
	for _, name := range caVariables {
		if !hasVariable(r.spec.Env, name) {
			r.spec.Env = append(r.spec.Env, name+"="+caBundlePath)
		}
	}
}

// commit makes a staged directory the layer of t. layer has its identity and
// size.
func (w *walk) commit(ctx context.Context, t *task, staged storage.Staged, layer storage.Layer) (storage.StepRecord, error) {
	layer.Created = time.Now().UTC().Truncate(time.Second)
	name := t.keys[0]
	if t.step.Run != nil {
		name = layer.Identity
	}
	id, won, err := staged.Commit(ctx, storage.StepLayerName(name))
	if err != nil {
		return storage.StepRecord{}, err
	}
	layer.ID = id
	if err := w.hold(ctx, []storage.Layer{layer}); err != nil {
		return storage.StepRecord{}, err
	}
	rec := storage.StepRecord{Layer: layer}
	if won {
		return rec, nil
	}
	return w.winners(ctx, name, rec)
}

const (
	// winnerWait bounds the wait for another build's record: it is written right
	// after the layer, unless that build was killed in between.
	winnerWait = time.Second
	// winnerPoll is how often the record is looked for.
	winnerPoll = 5 * time.Millisecond
)

// winners returns what another build recorded for the layer that it committed
// first, so that both make the same image: time, size and links are its. own is
// the answer when there is no such record.
func (w *walk) winners(ctx context.Context, key storage.Digest, own storage.StepRecord) (storage.StepRecord, error) {
	tick := time.NewTicker(winnerPoll)
	defer tick.Stop()
	for deadline := time.Now().Add(winnerWait); time.Now().Before(deadline); {
		rec, ok, err := w.o.Cache.Steps.Step(ctx, key)
		if err != nil || (ok && rec.Layer.ID == own.Layer.ID) {
			return rec, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return own, context.Cause(ctx)
		}
	}
	return own, nil
}
