// Package galera is a test: it shows on a real Galera cluster which form of
// guard holds where several nodes take writes. Run it by hack/galera.sh.
package galera
