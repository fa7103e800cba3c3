package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/export"
)

// defaultSocket is where docker's daemon listens.
const defaultSocket = "/var/run/docker.sock"

// daemon finds the daemon that -o type=daemon means: host= or context= of the
// output, then DOCKER_HOST, DOCKER_CONTEXT and the context of docker's config,
// CONTAINER_HOST, and the usual sockets of docker and podman. Source: docker
// context reference; podman-system-service(1).
func (c *cli) daemon(o export.Output) (export.Daemon, error) {
	d, err := c.findDaemon(o)
	if err != nil {
		return d, err
	}
	if err := d.Check(); err != nil {
		return d, &codedError{code: engine.ExitHost, hint: hostHint(err), err: err}
	}
	return d, nil
}

// hostHint is the hint of what keeps us from a daemon.
func hostHint(err error) string {
	if e, ok := errors.AsType[*export.DaemonError](err); ok {
		return e.Hint
	}
	return ""
}

// findDaemon looks in the documented order.
func (c *cli) findDaemon(o export.Output) (export.Daemon, error) {
	if host := o.Attrs["host"]; host != "" {
		return c.daemonAt(host), nil
	}
	if name := o.Attrs["context"]; name != "" {
		return c.dockerContext(name)
	}
	if host := c.getenv("DOCKER_HOST"); host != "" {
		return c.daemonAt(host), nil
	}
	name := c.getenv("DOCKER_CONTEXT")
	if name == "" {
		var err error
		if name, err = c.currentContext(); err != nil {
			return export.Daemon{}, err
		}
	}
	if name != "" && name != "default" {
		return c.dockerContext(name)
	}
	if host := c.getenv("CONTAINER_HOST"); host != "" {
		return c.daemonAt(host), nil
	}
	return c.usualSocket()
}

// daemonAt is a daemon with the TLS that docker's variables ask for.
func (c *cli) daemonAt(host string) export.Daemon {
	d := export.Daemon{Host: host}
	_, given := c.lookupenv("DOCKER_TLS_VERIFY")
	verify := c.getenv("DOCKER_TLS_VERIFY") != ""
	if verify || given || c.getenv("DOCKER_TLS") != "" {
		d.SkipVerify = !verify
		if d.CertDir = c.getenv("DOCKER_CERT_PATH"); d.CertDir == "" {
			d.CertDir = filepath.Dir(c.dockerConfig())
		}
	}
	return d
}

// usualSocket is the first socket that is there.
func (c *cli) usualSocket() (export.Daemon, error) {
	sockets := []string{defaultSocket}
	if run := c.getenv("XDG_RUNTIME_DIR"); run != "" {
		sockets = append(sockets, filepath.Join(run, "docker.sock"), filepath.Join(run, "podman", "podman.sock"))
	}
	for _, path := range append(sockets, "/run/podman/podman.sock") {
		if _, err := os.Stat(path); err == nil {
			return export.Daemon{Host: "unix://" + path}, nil
		}
	}
	return export.Daemon{}, &codedError{
		code: engine.ExitHost, hint: "DOCKER_HOST names one; -o type=docker,dest=FILE writes an archive for docker load",
		err: errors.New("no daemon: neither docker's nor podman's socket is there"),
	}
}

// currentContext is the context that docker's config chooses, "" for none.
func (c *cli) currentContext() (string, error) {
	name := c.dockerConfig()
	if name == "" {
		return "", nil
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var config struct {
		CurrentContext string `json:"currentContext"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return "", usagef("%s: %v", name, err)
	}
	return config.CurrentContext, nil
}

// dockerContext reads a context of docker's command line. Source: docker/cli,
// the layout of ~/.docker/contexts: meta/ID/meta.json and tls/ID/docker, where ID
// is the digest of the name.
func (c *cli) dockerContext(name string) (export.Daemon, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	dir := filepath.Join(filepath.Dir(c.dockerConfig()), "contexts")
	b, err := os.ReadFile(filepath.Join(dir, "meta", id, "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return export.Daemon{}, &usageError{message: "docker has no context " + name, hint: "docker context ls"}
	}
	if err != nil {
		return export.Daemon{}, err
	}
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err := json.Unmarshal(b, &meta); err != nil {
		return export.Daemon{}, usagef("docker's context %s: %v", name, err)
	}
	endpoint, ok := meta.Endpoints["docker"]
	if !ok || endpoint.Host == "" {
		return export.Daemon{}, usagef("docker's context %s names no daemon", name)
	}
	d := export.Daemon{Host: endpoint.Host, SkipVerify: endpoint.SkipTLSVerify}
	if certs := filepath.Join(dir, "tls", id, "docker"); isDir(certs) {
		d.CertDir = certs
	}
	return d, nil
}

func isDir(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir()
}
