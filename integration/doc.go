// Package integration holds tests of the whole: scripts against the built
// binary, the table of who may import whom, and the release binary's form.
package integration
