package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/buildcontext"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/worker"
	"github.com/mstage/mstage/storage/layertar"
)

// usagef returns a usage error.
func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// request reads what plan and build have in common: the Dockerfile, the context
// and the flags that change the plan. cleanup removes what was unpacked.
func (c *cli) request(ctx context.Context, f *buildFlags, contextArg string) (r engine.Request, cleanup func() error, err error) {
	cleanup = func() error { return nil }
	if err := checkPlatform(f.platform); err != nil {
		return r, cleanup, err
	}
	if r.BuildArgs, err = c.buildArgs(f.buildArgs); err != nil {
		return r, cleanup, err
	}
	if r.Labels, err = parseLabels(f.labels); err != nil {
		return r, cleanup, err
	}
	if r.Ulimits, err = parseUlimits(f.ulimits); err != nil {
		return r, cleanup, err
	}
	if r.ShmBytes, err = parseBytes("--shm-size", f.shmSize); err != nil {
		return r, cleanup, err
	}
	if !slices.Contains([]string{"default", "none", "host"}, f.network) {
		return r, cleanup, usagef("--network %s: default, none or host", f.network)
	}
	for _, a := range f.allow {
		if a != "network.host" {
			return r, cleanup, usagef("--allow %s: only network.host can be allowed", a)
		}
		r.AllowHostNetwork = true
	}
	r.Network, r.Target = f.network, f.target
	cleanup, err = c.readInput(ctx, f, contextArg, &r)
	return r, cleanup, err
}

// readInput finds the Dockerfile and the context.
func (c *cli) readInput(ctx context.Context, f *buildFlags, contextArg string, r *engine.Request) (cleanup func() error, err error) {
	cleanup = func() error { return nil }
	if contextArg == "-" {
		return c.readStdin(ctx, f, r)
	}
	if isURL(contextArg) {
		return cleanup, &usageError{message: contextArg + ": a URL or git repository as the context is not supported yet", hint: "clone or download it, and give the directory"}
	}
	st, err := os.Stat(contextArg)
	if err != nil {
		return cleanup, usagef("build context: %v", err)
	}
	if !st.IsDir() {
		return cleanup, &usageError{message: "build context " + contextArg + " is not a directory", hint: "a tar is read from standard input: mstage build - < " + contextArg}
	}
	r.Context.Dir, err = filepath.Abs(contextArg)
	if err != nil {
		return cleanup, err
	}
	if f.file == "-" {
		r.Name = "Dockerfile"
		r.Dockerfile, err = readDockerfile(c.stdin)
		return cleanup, err
	}
	return cleanup, c.findDockerfile(r, contextArg, f.file)
}

// findDockerfile reads -f, or the usual names in the context.
func (c *cli) findDockerfile(r *engine.Request, dir, file string) error {
	d, err := buildcontext.FindDockerfile(dir, file)
	if errors.Is(err, fs.ErrNotExist) {
		return &usageError{message: err.Error(), hint: "-f FILE names one; it is looked up from here, then from the context"}
	}
	if err != nil {
		return err
	}
	path, err := filepath.Abs(d.Path)
	r.Name, r.Dockerfile, r.Context.Dockerfile = d.Name, d.Data, path
	return err
}

// readStdin takes standard input for a Dockerfile or for the tar of a context.
func (c *cli) readStdin(ctx context.Context, f *buildFlags, r *engine.Request) (cleanup func() error, err error) {
	cleanup = func() error { return nil }
	if f.file == "-" {
		return cleanup, &usageError{message: "-f - and the context - both read standard input", hint: "give the context as a directory"}
	}
	dir, err := os.MkdirTemp("", "mstage-context-")
	if err != nil {
		return cleanup, err
	}
	cleanup = func() error { return os.RemoveAll(dir) }
	in, err := buildcontext.ReadStream(ctx, c.stdin, dir, func(r io.Reader) (io.ReadCloser, error) {
		out, _, err := layertar.Decompress(r)
		return out, err
	})
	if ctx.Err() == nil && layertar.Damaged(err) {
		return cleanup, &usageError{message: err.Error(), hint: "- reads a Dockerfile, or the whole tar of a context"}
	}
	if err != nil {
		return cleanup, err
	}
	if in.Dir != "" {
		r.Context.Dir = in.Dir
		return cleanup, c.findDockerfile(r, in.Dir, f.file)
	}
	r.Name, r.Dockerfile = "Dockerfile", in.Dockerfile
	r.Context.Dir = dir // empty: a COPY finds nothing
	return cleanup, nil
}

// readDockerfile reads a Dockerfile from a stream.
func readDockerfile(in io.Reader) ([]byte, error) {
	const maxBytes = 16 << 20 // as much as buildcontext reads from a file
	b, err := io.ReadAll(io.LimitReader(in, maxBytes+1))
	if err == nil && len(b) > maxBytes {
		return nil, usagef("the Dockerfile on standard input is larger than %d bytes", maxBytes)
	}
	return b, err
}

// isURL reports whether a context is something to download.
func isURL(s string) bool {
	for _, prefix := range []string{"http://", "https://", "git://", "git@", "ssh://", "github.com/"} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

// proxyVariables reach RUNs although no ARG declares them, and no cache key.
var proxyVariables = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// buildArgs reads --build-arg, and proxy variables from the environment and
// docker's config, which a --build-arg of the same name replaces.
func (c *cli) buildArgs(values []string) (map[string]string, error) {
	args, err := c.proxies()
	if err != nil {
		return nil, err
	}
	for _, kv := range values {
		name, value, given := strings.Cut(kv, "=")
		if name == "" {
			return nil, usagef("--build-arg %s: NAME=VALUE or NAME", kv)
		}
		if !given {
			if value, given = c.lookupenv(name); !given {
				continue
			}
		}
		dropProxy(args, name)
		args[name] = value
	}
	return args, nil
}

// dropProxy removes a proxy variable in upper and lower case: a --build-arg of
// one replaces what the environment says in the other, too.
func dropProxy(args map[string]string, name string) {
	if slices.Contains(proxyVariables, strings.ToUpper(name)) {
		delete(args, strings.ToUpper(name))
		delete(args, strings.ToLower(name))
	}
}

// getenv returns a variable of the environment, "" when it is not set.
func (c *cli) getenv(name string) string {
	value, _ := c.lookupenv(name)
	return value
}

// parseLabels reads --label values.
func parseLabels(values []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, kv := range values {
		key, value, _ := strings.Cut(kv, "=")
		if key == "" {
			return nil, usagef("--label %s: KEY=VALUE", kv)
		}
		labels[key] = value
	}
	return labels, nil
}

// parseBytes reads a size such as 64m; "" is 0.
func parseBytes(flag, value string) (int64, error) {
	if value == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(value)
	if err != nil || n <= 0 {
		return 0, usagef("%s %s: a size such as 64m or 1g", flag, value)
	}
	return n, nil
}

// parseUlimits reads --ulimit values with docker's own parser.
func parseUlimits(values []string) ([]plan.Ulimit, error) {
	var limits []plan.Ulimit
	for _, v := range values {
		u, err := units.ParseUlimit(v)
		if err != nil {
			return nil, &usageError{message: "--ulimit " + v + ": " + err.Error(), hint: "as nofile=1024:2048"}
		}
		limits = append(limits, plan.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return limits, nil
}

// parseHosts reads --add-host values: "name:ip", "name=ip", IPv6 in brackets or
// not.
func parseHosts(values []string) ([]worker.Host, error) {
	var hosts []worker.Host
	for _, v := range values {
		name, addr, ok := strings.Cut(v, "=")
		if !ok {
			name, addr, ok = strings.Cut(v, ":")
		}
		addr = strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")
		if _, err := netip.ParseAddr(addr); !ok || name == "" || err != nil {
			return nil, &usageError{message: "--add-host " + v + ": HOST:IP", hint: "as db:10.0.0.5 or db:::1"}
		}
		hosts = append(hosts, worker.Host{Name: name, Addr: addr})
	}
	return hosts, nil
}

// maxSecretBytes is docker's limit for a secret.
const maxSecretBytes = 500 << 10

// parseSecrets reads --secret values: id=ID[,type=file|env][,src=FILE|,env=NAME].
func parseSecrets(values []string, lookupenv func(string) (string, bool)) (map[string][]byte, error) {
	secrets := map[string][]byte{}
	for _, v := range values {
		id, data, err := parseSecret(v, lookupenv)
		if err != nil {
			return nil, &usageError{message: "--secret " + v + ": " + err.Error(), hint: "as id=token,src=token.txt or id=token,env=TOKEN"}
		}
		secrets[id] = data
	}
	return secrets, nil
}

func parseSecret(value string, lookupenv func(string) (string, bool)) (id string, data []byte, err error) {
	fields := map[string]string{}
	for field := range strings.SplitSeq(value, ",") {
		key, val, ok := strings.Cut(field, "=")
		if !ok {
			return "", nil, fmt.Errorf("field %q has no value", field)
		}
		switch key = strings.ToLower(key); key {
		case "source":
			key = "src"
		case "id", "src", "env", "type":
		default:
			return "", nil, fmt.Errorf("unknown field %q", key)
		}
		fields[key] = val
	}
	id = fields["id"]
	if id == "" {
		return "", nil, errors.New("no id")
	}
	return readSecret(id, fields, lookupenv)
}

// readSecret reads the variable or the file of a secret; without either the
// variable of its name, then the file.
func readSecret(id string, fields map[string]string, lookupenv func(string) (string, bool)) (string, []byte, error) {
	if t := fields["type"]; t != "" && t != "file" && t != "env" {
		return "", nil, fmt.Errorf("unknown type %q", t)
	}
	name, file := fields["env"], fields["src"]
	if fields["type"] == "env" && name == "" {
		name, file = file, ""
	}
	if name == "" && file == "" {
		if _, set := lookupenv(id); set {
			name = id
		} else {
			file = id
		}
	}
	if name != "" {
		value, set := lookupenv(name)
		if !set {
			return "", nil, fmt.Errorf("environment variable %s is not set", name)
		}
		return id, []byte(value), nil
	}
	data, err := readSecretFile(file)
	return id, data, err
}

// readSecretFile reads a file, or a pipe, whose size says nothing.
func readSecretFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretBytes+1))
	if err == nil && len(data) > maxSecretBytes {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxSecretBytes)
	}
	return data, err
}
