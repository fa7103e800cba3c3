package main

import "testing"

func TestTheEmbeddedRootsCanBeRead(t *testing.T) {
	// Mozilla's list has had more than 100 since it exists in this form.
	const want = 100
	_, count, err := embeddedRoots()
	if err != nil || count < want {
		t.Errorf("got %d roots and error %v, want at least %d", count, err, want)
	}
}
