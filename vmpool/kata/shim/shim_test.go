package shim

import (
	"slices"
	"strings"
	"testing"
)

// kataArgs are the kinds of arguments that Kata passes.
var kataArgs = []string{"-name", "sandbox-1", "-machine", "q35,accel=kvm,kernel_irqchip=split,nvdimm=off", "-cpu", "host,pmu=off", "-global", "kvm-pit.lost_tick_policy=discard",
	"-global", "ICH9-LPC.x=1", "-m", "320M", "-pidfile", "/run/vm/abc/pid", "-smp", "1"}

func TestEmulationReplacesHardware(t *testing.T) {
	out, err := Args(kataArgs, "/shims/python", TCG)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(out, " ")
	for _, word := range []string{"kvm", "kernel_irqchip", "host,pmu"} {
		if strings.Contains(all, word) {
			t.Errorf("%q is left in %s", word, all)
		}
	}
	for _, words := range []string{"-machine q35,nvdimm=off,sata=off,", "-cpu max ", "-global ICH9-LPC.x=1 ", "-pidfile /run/vm/abc/pid ", "-accel tcg,"} {
		if !strings.Contains(all, words) {
			t.Errorf("no %q in %s", words, all)
		}
	}
}

func TestHardwareIsLeftAlone(t *testing.T) {
	out, err := Args(kataArgs, "/shims/python", KVM)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.Index(kataArgs, "-machine") + 1
	if !strings.HasPrefix(out[i], kataArgs[i]+",") {
		t.Errorf("the machine became %q", out[i])
	}
	out[i] = kataArgs[i]
	if !slices.Equal(out[:len(kataArgs)], kataArgs) {
		t.Errorf("Kata's arguments became %q", out)
	}
}

// TestUnusedDevicesGo: what no guest uses is in no VM, and what only a boot uses in no clone.
func TestUnusedDevicesGo(t *testing.T) {
	devices := []string{"-device", "pci-bridge,bus=pcie.0,id=b", "-object", "rng-random,id=rng0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng0"}
	boot := []string{"-kernel", "vmlinuz", "-initrd", "initrd", "-append", "quiet"}
	all := slices.Concat([]string{"-m", "64M,slots=1,maxmem=1G", "-device", "virtio-serial-pci,id=s"}, devices, boot, kataArgs)
	for _, accel := range []string{KVM, TCG} {
		template, err := Args(all, "/shims/python", accel)
		if err != nil {
			t.Fatal(err)
		}
		clone, err := Args(append(slices.Clone(all), "-incoming", "defer"), "/shims/python", accel)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range devices[1:] {
			if word[0] != '-' && slices.Contains(template, word) {
				t.Errorf("%s: a template has %q", accel, word)
			}
		}
		for _, word := range boot {
			if !slices.Contains(template, word) {
				t.Errorf("%s: a template is booted without %q", accel, word)
			}
			if slices.Contains(clone, word) {
				t.Errorf("%s: a clone has %q", accel, word)
			}
		}
		if i := slices.Index(clone, "-m"); clone[i+1] != "64M" {
			t.Errorf("%s: a clone has memory of %s", accel, clone[i+1])
		}
		if !slices.Contains(clone, "-incoming") || !slices.Contains(clone, "virtio-serial-pci,id=s,max_ports=4") {
			t.Errorf("%s: a clone has %q", accel, clone)
		}
	}
}

// TestOnlyPathsDifferBetweenVMs: a saved state fits the same devices only.
func TestOnlyPathsDifferBetweenVMs(t *testing.T) {
	a, err := Args(kataArgs, "/shims/python", TCG)
	if err != nil {
		t.Fatal(err)
	}
	other := slices.Clone(kataArgs)
	other[slices.Index(other, "/run/vm/abc/pid")] = "/run/vm/def/pid"
	b, err := Args(other, "/shims/python", TCG)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.ReplaceAll(strings.Join(b, " "), "/vm/def/", "/vm/abc/"); got != strings.Join(a, " ") {
		t.Errorf("they differ:\n%q\n%q", a, b)
	}
	if !strings.Contains(strings.Join(a, " "), "path=/run/vm/abc/"+StreamSocket) {
		t.Errorf("the stream is not in the VM's folder: %q", a)
	}
}

func TestNoFolderIsAnError(t *testing.T) {
	if _, err := Args([]string{"-machine", "q35"}, "/shims", TCG); err == nil {
		t.Error("arguments without a pidfile were taken")
	}
}
