import torch

rows = {"river": [1, 0, 0, 1], "money": [0, 1, 0, 1], "bank": [.7, .7, 0, 1], "rain": [.9, 0, .2, 1]}
rows = {word: torch.tensor(v, dtype=torch.float) for word, v in rows.items()}  # all share a direction: the last one
def cos(a, b):
    return float(torch.cosine_similarity(a, b, 0))

print("near river:", sorted(rows, key=lambda w: -cos(rows["river"], rows[w]))[1:])
state = {"river": rows["bank"].clone(), "money": rows["bank"].clone()}  # one row, two contexts
for layer in range(4):
    null = torch.tensor([cos(rows[a], rows[b]) for a in rows for b in rows if a < b]).mean()
    both = cos(state["river"], state["money"])
    print(f"after {layer} layers: cosine {both:.3f}, likeness {(both - null) / (1 - null):.3f}")
    state = {word: s + 0.8 * rows[word] for word, s in state.items()}  # each layer adds what it read
