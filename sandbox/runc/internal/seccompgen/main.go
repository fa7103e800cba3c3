// Command seccompgen compiles docker's default seccomp profile, for a process
// with docker's default capabilities on a kernel of 5.11 or later, to classic
// BPF: one file for each architecture this program is built for.
//
// It is run by go generate in sandbox/runc. The numbers of the system calls are
// read from golang.org/x/sys/unix.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/profiles/seccomp"
	"golang.org/x/net/bpf"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "seccompgen:", err)
		os.Exit(1)
	}
}

// run writes profile_ARCH.bpf for every target to the directory args[0].
func run(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: seccompgen DIRECTORY")
	}
	for _, t := range targets {
		prog, err := compileTarget(t, seccomp.DefaultProfile())
		if err != nil {
			return fmt.Errorf("compile for %s: %w", t.goarch, err)
		}
		name := filepath.Join(args[0], "profile_"+t.goarch+".bpf")
		if err := os.WriteFile(name, encode(prog), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// encode writes the instructions as struct sock_filter, little endian as all
// targets are.
func encode(prog []bpf.RawInstruction) []byte {
	var b bytes.Buffer
	for _, i := range prog {
		_ = binary.Write(&b, binary.LittleEndian, struct {
			Op     uint16
			Jt, Jf uint8
			K      uint32
		}{i.Op, i.Jt, i.Jf, i.K}) // a bytes.Buffer takes everything
	}
	return b.Bytes()
}
