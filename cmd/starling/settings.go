package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"starling/internal/durable"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"
)

// A setting is one thing a user can set by flag, by environment and in the file, under one name:
// "node.memory" is the flag --memory of 'starling node', STARLING_NODE_MEMORY, and memory under node: in
// the file. The default's type (string, int, bool, time.Duration) is the setting's type.
type setting struct {
	key    string
	def    any
	usage  string
	secret bool // config show hides it
}

// flag is the setting's flag: the last part of its key.
func (s setting) flag() string { return s.key[strings.LastIndex(s.key, ".")+1:] }

func (s setting) env() string {
	return "STARLING_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(s.key))
}

// clientSettings are those of every command that talks to a cluster.
var clientSettings = []setting{
	{key: "server", def: "http://127.0.0.1:8080", usage: "address of a frontend"},
	{key: "key", def: "", usage: "API key; better in STARLING_KEY or a profile than on the command line", secret: true},
	{key: "account", def: "", usage: "act for this account (admin keys only)"},
	{key: "quic-addr", def: "127.0.0.1:7400", usage: "host:port of a frontend's QUIC endpoint, for invoke --quic"},
	{key: "ca", def: "", usage: "file with the cluster's CA certificate, for QUIC and HTTPS"},
	{key: "pin", def: "", usage: "SHA-256 fingerprint of the cluster's CA certificate in hex, for QUIC without --ca"},
	{key: "admin", def: "http://127.0.0.1:8081", usage: "admin addresses of nodes, comma-separated, for top, advise, bench and node uplinks"},
}

// settings are the loaded values and where each came from.
type settings struct {
	k      *koanf.Koanf
	origin map[string]string
	file   string // that was read or would be
}

func (s settings) text(key string) string {
	if s.k == nil {
		return ""
	}
	return s.k.String(key)
}

func (s settings) number(key string) int             { return s.k.Int(key) }
func (s settings) flagged(key string) bool           { return s.k.Bool(key) }
func (s settings) duration(key string) time.Duration { return s.k.Duration(key) }
func (s settings) list(key string) []string          { return splitList(s.k.String(key)) }
func (s settings) from(key string) string            { return s.origin[key] }

func splitList(s string) []string {
	var out []string
	for _, w := range strings.Split(s, ",") {
		if w = strings.TrimSpace(w); w != "" {
			out = append(out, w)
		}
	}
	return out
}

func addSettingFlags(f *pflag.FlagSet, list []setting) {
	for _, s := range list {
		switch def := s.def.(type) {
		case string:
			f.String(s.flag(), def, s.usage)
		case int:
			f.Int(s.flag(), def, s.usage)
		case bool:
			f.Bool(s.flag(), def, s.usage)
		case time.Duration:
			f.Duration(s.flag(), def, s.usage)
		}
	}
}

// allSettings is every setting the file and the environment may name.
func allSettings() []setting { return slices.Concat(clientSettings, nodeSettings) }

// load reads every layer, the weakest first, and notes who set what.
func (a *app) load(flags *pflag.FlagSet) error {
	s := settings{k: koanf.New("."), origin: map[string]string{}, file: a.configFile()}
	known := map[string]setting{}
	defaults := map[string]any{}
	for _, d := range allSettings() {
		known[d.key] = d
		defaults[d.key] = d.def
		s.origin[d.key] = "default"
	}
	if err := s.k.Load(confmap.Provider(defaults, "."), nil); err != nil {
		return fmt.Errorf("load defaults: %w", err)
	}
	if err := a.loadFile(&s, known); err != nil {
		return err
	}
	layer := koanf.New(".")
	byEnv := map[string]string{}
	for _, d := range known {
		byEnv[d.env()] = d.key
	}
	err := layer.Load(env.Provider(".", env.Opt{Prefix: "STARLING_", EnvironFunc: func() []string { return a.env },
		TransformFunc: func(name, value string) (string, any) {
			key := byEnv[name] // other names, such as STARLING_PROFILE, are not settings
			s.note(key, "environment "+name)
			return key, value
		}}), nil)
	if err != nil {
		return fmt.Errorf("read environment: %w", err)
	}
	if err := s.k.Merge(layer); err != nil {
		return fmt.Errorf("read environment: %w", err)
	}
	byFlag := koanf.New(".")
	err = byFlag.Load(posflag.ProviderWithFlag(flags, ".", byFlag, func(f *pflag.Flag) (string, any) {
		key := settingOfFlag(flags, f)
		if key == "" || !f.Changed {
			return "", nil
		}
		s.note(key, "flag --"+f.Name)
		return key, posflag.FlagVal(flags, f)
	}), nil)
	if err != nil {
		return fmt.Errorf("read flags: %w", err)
	}
	if err := s.k.Merge(byFlag); err != nil {
		return fmt.Errorf("read flags: %w", err)
	}
	a.set = s
	return s.check(known)
}

func (s *settings) note(key, from string) {
	if key != "" {
		s.origin[key] = from
	}
}

// settingOfFlag finds the setting behind a flag. Node flags exist only on commands that start a node, which
// mark themselves by the flag "data".
func settingOfFlag(flags *pflag.FlagSet, f *pflag.Flag) string {
	if flags.Lookup("data") != nil {
		for _, s := range nodeSettings {
			if s.flag() == f.Name {
				return s.key
			}
		}
	}
	for _, s := range clientSettings {
		if s.flag() == f.Name {
			return s.key
		}
	}
	return ""
}

// loadFile reads the configuration file and lays its profile over it. A file that is not there is an error
// only when it was asked for.
func (a *app) loadFile(s *settings, known map[string]setting) error {
	layer := koanf.New(".")
	if err := layer.Load(file.Provider(s.file), yaml.Parser()); err != nil {
		if errors.Is(err, os.ErrNotExist) && a.flags.config == "" {
			if p := a.profileName(layer); p != "default" && !a.newProfile {
				return usagef("there is no profile %q: %s does not exist; 'starling login --profile %s' makes it", p, s.file, p)
			}
			return nil
		}
		return usagef("read configuration: %v", err)
	}
	name := a.profileName(layer)
	profile := layer.Cut("profiles." + name)
	if len(profile.Keys()) == 0 && name != "default" && !a.newProfile {
		return usagef("there is no profile %q in %s: use 'starling login --profile %s', or one that is there", name, s.file, name)
	}
	layer.Delete("profiles")
	layer.Delete("profile")
	for _, part := range []struct {
		k    *koanf.Koanf
		from string
	}{{layer, "file " + s.file}, {profile, "profile " + name + " of " + s.file}} {
		for _, key := range part.k.Keys() {
			if _, ok := known[key]; !ok {
				return usagef("%s: there is no setting %q; 'starling config show' lists them", part.from, key)
			}
			s.note(key, part.from)
		}
		if err := s.k.Merge(part.k); err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
	}
	return nil
}

// check reports the first value of a wrong type, by who set it.
func (s *settings) check(known map[string]setting) error {
	for key, d := range known {
		text := s.k.String(key)
		var err error
		switch d.def.(type) {
		case int:
			_, err = strconv.Atoi(text)
		case bool:
			_, err = strconv.ParseBool(text)
		case time.Duration:
			if _, err = time.ParseDuration(text); err != nil {
				_, err = strconv.Atoi(text)
			}
		}
		if err != nil {
			return usagef("%s: setting %s: %q is no %T", s.from(key), key, text, d.def)
		}
	}
	return nil
}

// configFile is where settings and profiles are kept.
func (a *app) configFile() string {
	if a.flags.config != "" {
		return a.flags.config
	}
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		dir = filepath.Join(a.getenv("HOME"), ".config")
	}
	return filepath.Join(dir, "starling", "config.yaml")
}

func (a *app) profileName(k *koanf.Koanf) string {
	for _, name := range []string{a.flags.profile, a.getenv("STARLING_PROFILE"), k.String("profile")} {
		if name != "" {
			return name
		}
	}
	return "default"
}

// saveProfile writes values into a profile of the configuration file, which only its owner may read, and
// makes it the one in use when there was none. Everything else in the file stays; comments do not.
func (a *app) saveProfile(name string, values map[string]string) (string, error) {
	path := a.configFile()
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), yaml.Parser()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read configuration: %w", err)
	}
	for key, v := range values {
		if err := k.Set("profiles."+name+"."+key, v); err != nil {
			return "", fmt.Errorf("set profile: %w", err)
		}
	}
	if k.String("profile") == "" {
		if err := k.Set("profile", name); err != nil {
			return "", fmt.Errorf("set profile: %w", err)
		}
	}
	b, err := k.Marshal(yaml.Parser())
	if err != nil {
		return "", fmt.Errorf("encode configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", fmt.Errorf("save profile: %w", err)
	}
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return "", fmt.Errorf("save profile: %w", err)
	}
	return path, nil
}
