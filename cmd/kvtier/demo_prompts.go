package main

import _ "embed"

// The prompts of the demo. The scene is from The Taming of the Shrew (public domain); the other two prefaces were written for this project.
var (
	//go:embed prompts/scene.txt
	sceneText string
	//go:embed prompts/questions.txt
	questionsText string
	//go:embed prompts/translation.txt
	translationText string
)

// scenario is a prefix that several requests share, and how each goes on.
type scenario struct {
	name        string
	prefix      string
	suffixes    []string
	temperature float64
}

func demoScenarios() []scenario {
	return []scenario{
		{name: "text generation", prefix: sceneText, temperature: 0.8, suffixes: []string{
			"PETRUCHIO:\n", "KATHARINA:\nMy lord, ", "LUCENTIO:\nBianca, ", "BAPTISTA:\nSon, ", "GREMIO:\nI say ", "BIANCA:\nFather, ",
		}},
		{name: "question answering", prefix: questionsText, suffixes: []string{
			"Question: Who is the prince of Denmark?\nAnswer:", "Question: Who loved the moor of Venice?\nAnswer:",
			"Question: What is the name of Juliet's nurse?\nAnswer:", "Question: Who is the father of Cordelia?\nAnswer:",
			"Question: Where does the duke of Milan live?\nAnswer:", "Question: Who killed Tybalt?\nAnswer:",
		}},
		{name: "translation", prefix: translationText, suffixes: []string{
			"Plain: Where do you go this evening?\nCourt:", "Plain: He has killed his enemy.\nCourt:",
			"Plain: Look, your servant is here.\nCourt:", "Plain: Perhaps you can see her often.\nCourt:",
			"Plain: Truly, it is enough.\nCourt:", "Plain: Why does she think so?\nCourt:",
		}},
	}
}
