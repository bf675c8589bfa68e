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
	for _, words := range []string{"-machine q35,nvdimm=off ", "-cpu max ", "-global ICH9-LPC.x=1 ", "-pidfile /run/vm/abc/pid ", "-accel tcg,"} {
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
	if !slices.Equal(out[:len(kataArgs)], kataArgs) {
		t.Errorf("Kata's arguments became %q", out)
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
