package main

import (
	"encoding/json"
	"fmt"
	"os"
)

// writeKeys keeps v where only this user can read it.
func writeKeys(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the keys: %w", err)
	}
	return nil
}

// readKeys reads what writeKeys wrote.
func readKeys(path string, v any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}
