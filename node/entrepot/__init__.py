"""entrepot: files stay where they are; those who may read them fetch them through a small cache."""
