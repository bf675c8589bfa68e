package node

import (
	"os"

	"go.yaml.in/yaml/v3"

	"starling"
	"starling/sched/scale"
)

// ReadScaling reads settings of the scaling policy from a YAML file of name: value lines; what it does not name keeps
// its default. An empty path is all defaults. 'starling analyze --tune' writes such files.
func ReadScaling(path string) (*scale.Adaptive, error) {
	const op = "read scaling settings"
	a := scale.Default()
	if path == "" {
		return a, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "%w", err)
	}
	var values map[string]string
	if err := yaml.Unmarshal(text, &values); err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "%s: %w", path, err)
	}
	for name, v := range values {
		if err := a.Set(name, v); err != nil {
			return nil, starling.Errorf(starling.Invalid, op, "%s: %w", path, err)
		}
	}
	if err := a.Validate(); err != nil {
		return nil, starling.Errorf(starling.Invalid, op, "%s: %w", path, err)
	}
	return a, nil
}
