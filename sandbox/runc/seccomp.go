package runc

//go:generate go run ./internal/seccompgen .

// filterSize is sizeof(struct sock_filter), in bytes.
const filterSize = 8
