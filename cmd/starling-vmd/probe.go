package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"starling/vmpool/kata/agent"
	"starling/vmpool/kata/link"
	"starling/vmpool/kata/shim"
)

// probeTime is how long a guest may take to boot with hardware help; it takes well under a second where that works.
const probeTime = 15 * time.Second

// probe finds out whether VMs run with hardware help here, by booting one. A device that can be opened proves nothing: on some
// machines it opens, and a guest hangs. Where there is none, software emulation does, slowly.
func probe(ctx context.Context, s *link.Setup) (accel, why string, err error) {
	kernel := filepath.Join(s.Images, "kernel/vmlinuz")
	if _, err := os.Stat(kernel); err != nil {
		return "", "", fmt.Errorf("no guest kernel (make guest-images makes one): %w", err)
	}
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		return shim.TCG, "no hardware virtualization: " + err.Error(), nil
	} else {
		f.Close()
	}
	ramdisk, err := initrd(s, "")
	if err != nil {
		return "", "", err
	}
	file := "/run/probe.initrd"
	if err := os.WriteFile(file, ramdisk, 0o600); err != nil {
		return "", "", err
	}
	defer os.Remove(file)
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.QEMU, "-machine", "q35,accel=kvm", "-cpu", "host", "-m", fmt.Sprint(s.MemoryMiB), "-nodefaults", "-no-user-config",
		"-nographic", "-no-reboot", "-serial", "stdio", "-kernel", kernel, "-initrd", file, "-append", "console=ttyS0 quiet panic=-1 "+agent.ProbeParam)
	begun := time.Now()
	out, _ := cmd.CombinedOutput() // how it ends does not matter
	took := time.Since(begun).Round(time.Millisecond)
	if bytes.Contains(out, []byte(agent.ProbeDone)) {
		return shim.KVM, fmt.Sprintf("a probe guest booted in %v", took), nil
	}
	said := strings.Join(strings.Fields(string(out[max(0, len(out)-200):])), " ")
	return shim.TCG, fmt.Sprintf("/dev/kvm is there, but a probe guest did not boot in %v: %s", took, said), nil
}
