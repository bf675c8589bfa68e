// Package vpcproxy holds no code of its own: its folders are the parts of the shared gateway that gives functions their
// networks, and its tests are all of them together, in real network namespaces. DESIGN.md says why it is like this.
package vpcproxy
