package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// busyboxProgram is the host's; it has to be linked statically.
const busyboxProgram = "/bin/busybox"

// busyboxPath is where the base image has it.
const busyboxPath = "usr/bin/busybox"

// netRaw is the attribute security.capability as "setcap cap_net_raw+ep" sets it.
const netRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// applets are those that cases use. All that a host's busybox has would make the
// image, and what cases copy of it, differ from host to host.
const applets = `[ ash awk basename cat chgrp chmod chown cp cut date dd dirname echo env
	expr false find grep head hostname id install ip ln ls md5sum mkdir mkfifo
	mknod mktemp mv nc od ping printf ps pwd readlink realpath rm rmdir sed seq
	sh sha256sum sleep sort stat tail tar tee test touch tr true tty uname uniq
	wc wget whoami xargs yes`

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/sh
builder:x:1000:1000:Builder:/home/builder:/bin/sh
nohome:x:1002:1002:No::/bin/sh
1500:x:1501:1501:Numeric:/home/num:/bin/sh
`

const group = `root:x:0:
daemon:x:1:
builder:x:1000:
docs:x:2000:builder,daemon
empty:x:2001:
1500:x:1502:
`

// rootEntry is an entry of the base's tar. Names of directories end with a slash.
type rootEntry struct {
	name     string
	mode     int64
	uid, gid int
	text     string // content
	link     string // target of a symbolic link
	hard     string // name that this is another name of
	xattr    string // NAME=VALUE
	fifo     bool
}

// rootEntries are what the base image has, but for busybox and its applets: a
// merged /usr, accounts, setuid and setgid, sticky, capabilities, attributes, a
// fifo, hard and symbolic links.
var rootEntries = []rootEntry{
	{name: "./"},
	{name: "usr/"},
	{name: "usr/bin/"},
	{name: "usr/lib/"},
	{name: "usr/sbin", link: "bin"},
	{name: "bin", link: "usr/bin"},
	{name: "sbin", link: "usr/sbin"},
	{name: "lib", link: "usr/lib"},
	{name: "dev/"},
	{name: "etc/"},
	{name: "etc/group", text: group},
	{name: "etc/passwd", text: passwd},
	{name: "home/"},
	{name: "home/builder/", uid: 1000, gid: 1000},
	{name: "home/builder/.profile", uid: 1000, gid: 1000, text: "p\n"},
	{name: "opt/"},
	{name: "opt/dir/"},
	{name: "opt/dir/file", text: "hello\n", xattr: "user.note=keep"},
	{name: "opt/dir/sub/"},
	{name: "opt/dir/sub/file", text: "sub\n"},
	{name: "opt/fifo", fifo: true},
	{name: "opt/links/"},
	{name: "opt/links/a", text: "x\n"},
	{name: "opt/links/b", hard: "opt/links/a"},
	{name: "opt/links/absdir", link: "/opt/dir"},
	{name: "opt/links/dangling", link: "/nowhere/x"},
	{name: "opt/links/loop", link: "loop"},
	{name: "opt/links/todir", link: "../dir"},
	{name: "opt/links/tofile", link: "../dir/file"},
	{name: "proc/"},
	{name: "root/", mode: 0o700},
	{name: "run/"},
	{name: "srv/"},
	{name: "srv/setgid/", mode: 0o2775, gid: 2000},
	{name: "sys/"},
	{name: "tmp/", mode: 0o1777},
	{name: "usr/bin/captool", text: "cap\n", xattr: "security.capability=" + netRaw},
	{name: "usr/bin/sgid", mode: 0o2755, text: "sgid\n"},
	{name: "usr/bin/suid", mode: 0o4755, text: "suid\n"},
	{name: "var/"},
	{name: "var/lib/"},
	{name: "var/lib/data/", mode: 0o750, uid: 1, gid: 2000},
	{name: "var/lib/data/f", mode: 0o600, uid: 1, gid: 1, text: "secret\n"},
	{name: "var/log/"},
}

// writeRootFS writes the tar of the base image's root file system. No privileges
// are needed: owners, attributes and capabilities are but bytes in it.
func writeRootFS(file string) error {
	program, err := os.ReadFile(busyboxProgram)
	if err != nil {
		return fmt.Errorf("busybox, linked statically: %w", err)
	}
	entries := append(slices.Clone(rootEntries), rootEntry{name: busyboxPath, mode: 0o755, text: string(program)})
	for name := range strings.FieldsSeq(applets) {
		entries = append(entries, rootEntry{name: "usr/bin/" + name, link: "busybox"})
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := e.write(w); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return errors.Join(w.Close(), os.WriteFile(file, b.Bytes(), 0o644))
}

// write writes an entry. Everything is of the first day of 2019.
func (e rootEntry) write(w *tar.Writer) error {
	h := &tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: e.name, Mode: e.mode, Uid: e.uid, Gid: e.gid,
		Size: int64(len(e.text)), ModTime: time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	defaultMode := int64(0o644)
	switch {
	case e.link != "":
		h.Typeflag, h.Linkname, defaultMode = tar.TypeSymlink, e.link, 0o777
	case e.hard != "":
		h.Typeflag, h.Linkname = tar.TypeLink, e.hard
	case e.fifo:
		h.Typeflag = tar.TypeFifo
	case strings.HasSuffix(e.name, "/"):
		h.Typeflag, defaultMode = tar.TypeDir, 0o755
	}
	if h.Mode == 0 {
		h.Mode = defaultMode
	}
	if name, value, ok := strings.Cut(e.xattr, "="); ok {
		h.PAXRecords = map[string]string{xattrPrefix + name: value}
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(w, e.text)
	return err
}
