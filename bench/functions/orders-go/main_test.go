package main

import (
	"context"
	"testing"
)

func TestOrdersAreSummedUp(t *testing.T) {
	s, err := handle(context.Background(), order{ID: "o1", Items: []item{{"apple", 3, 125}, {"pear", 1, 80}}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Pieces != 4 || s.Total != "4.55" {
		t.Fatalf("%+v", s)
	}
	for _, bad := range []order{{}, {ID: "o1"}, {ID: "o1", Items: []item{{"apple", 0, 1}}}, {ID: "o1", Items: []item{{"apple", 1, -1}}}} {
		if _, err := handle(context.Background(), bad); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}
