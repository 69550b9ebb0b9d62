package mysqllock

import (
	"encoding/json"
	"os"
	"testing"
)

// A guard is worth something if both rows of an election are on one shard.
func TestSchemaForVitessKeepsBothRowsOfAnElectionOnOneShard(t *testing.T) {
	text, err := os.ReadFile("vschema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Tables map[string]struct {
			Vindexes []struct{ Column, Name string } `json:"column_vindexes"`
		} `json:"tables"`
		Vindexes map[string]struct{ Type string } `json:"vindexes"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	if len(schema.Tables) != 2 {
		t.Errorf("%d tables", len(schema.Tables))
	}
	for _, table := range []*table{recordsTable, fencesTable} {
		vindexes := schema.Tables[table.name].Vindexes
		if len(vindexes) != 1 || vindexes[0].Column != "election_name" || schema.Vindexes[vindexes[0].Name].Type != "xxhash" {
			t.Errorf("%s: %+v", table.name, vindexes)
		}
	}
}
